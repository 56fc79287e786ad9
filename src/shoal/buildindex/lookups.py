# SPDX-License-Identifier: Apache-2.0
"""Lookups at one build-index: what is asked, and many of them as one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from shoal.buildindex.messages import LookupAnswer, LookupRequest
from shoal.buildindex.records import Kind
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.manifest import FoundManifest
from shoal.web.client import Answer
from shoal.web.failures import Unreachable


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a repository has something."""

    kind: Literal["manifest", "blob"]
    repository: str
    reference: str
    """A tag or a digest."""

    @property
    def record_kind(self) -> Kind:
        """Which kind of record answers it."""
        return "tag" if self.kind == "manifest" and ":" not in self.reference else self.kind

    def __str__(self) -> str:
        joint = ":" if self.record_kind == "tag" else "@"
        return f"{self.repository}{joint}{self.reference}"


Known = FoundManifest | bool
"""The manifest, or True for a blob; False: it is not there."""


class Open(Enum):
    """The records of the build-index alone do not answer."""

    OPEN = "open"


OPEN = Open.OPEN

LOOKUP = "/internal/lookup"


def lookup_request(
    questions: Sequence[Question], *, rely: bool, through: bool = False
) -> LookupRequest:
    """The questions as one request."""
    return LookupRequest(
        manifests=[(q.repository, q.reference) for q in questions if q.kind == "manifest"],
        blobs=[(q.repository, q.reference) for q in questions if q.kind == "blob"],
        rely=rely,
        through=through,
    )


def lookup_answers(questions: Sequence[Question], answer: Answer) -> list[Known | Open]:
    """What was answered to the questions; raises `Unreachable` when it does not fit them."""
    answered = answer.decode(LookupAnswer)
    asked = sum(question.kind == "manifest" for question in questions)
    if (len(answered.manifests), len(answered.blobs)) != (asked, len(questions) - asked):
        raise _unfit(answer, f"{len(questions)} questions, and another number of answers")
    manifests, blobs = enumerate(answered.manifests), enumerate(answered.blobs)
    open_manifests, open_blobs = set(answered.open_manifests), set(answered.open_blobs)
    known: list[Known | Open] = []
    for question in questions:
        if question.kind == "blob":
            number, has = next(blobs)
            known.append(OPEN if number in open_blobs else has)
            continue
        number, found = next(manifests)
        if number in open_manifests:
            known.append(OPEN)
        elif found is None:
            known.append(False)
        else:
            digest = digest_in(found.digest, answer)
            known.append(FoundManifest(digest, found.media_type, found.size))
    return known


def digest_in(text: str, answer: Answer) -> Digest:
    """The digest that stands in an answer; raises `Unreachable` when it is none."""
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise _unfit(answer, str(error)) from error


def _unfit(answer: Answer, why: str) -> Unreachable:
    return Unreachable(answer.method, answer.url, why, status=answer.status)
