# SPDX-License-Identifier: Apache-2.0
"""Lookups at one build-index, many in one request.

While a request is under way, those who ask wait for the next one. So an answer is never older than
its question, and one request at a time carries whatever the callers come up with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from shoal.buildindex.messages import MAX_QUESTIONS, LookupAnswer, LookupRequest
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.manifest import FoundManifest
from shoal.web.client import Answer
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Unreachable


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a repository has something."""

    kind: Literal["manifest", "blob"]
    repository: str
    reference: str
    """A tag or a digest."""


Known = FoundManifest | bool
"""The manifest, or True for a blob; False: it is not there."""

LOOKUP = "/internal/lookup"

Send = Callable[[Sequence[Question], Deadline], Awaitable[Sequence[Known]]]
"""Ask the build-index; the answers come in the order of the questions. Raises `CallFailed`."""


@dataclass(slots=True)
class _Asked:
    question: Question
    answer: asyncio.Future[Known]


class Lookups:
    """Batches the questions to one build-index."""

    def __init__(self, send: Send, name: str, *, timeout: float) -> None:
        """`name` says in errors who is asked: ``host:port``; `timeout`: seconds for one request."""
        self._send = send
        self._name = name
        self._timeout = timeout
        self._waiting: list[_Asked] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Question, deadline: Deadline) -> Known:
        """The answer of the build-index, given after this was called.

        Raises what the request raises, and `Unreachable` at the deadline, or when the request that
        this waited behind did not reach the build-index. Who leaves early harms nobody else.
        """
        asked = _Asked(question, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"lookups at {self._name}")
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asked.answer
        except TimeoutError as error:
            raise Unreachable(
                "POST", f"http://{self._name}{LOOKUP}", "no answer in time"
            ) from error

    async def _run(self) -> None:
        try:
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            self._task = None

    def _next_batch(self) -> dict[Question, list[_Asked]]:
        """Those who wait, at most `MAX_QUESTIONS` questions of them; who left is forgotten."""
        batch: dict[Question, list[_Asked]] = {}
        later: list[_Asked] = []
        for asked in self._waiting:
            if asked.answer.done():
                continue
            if asked.question in batch or len(batch) < MAX_QUESTIONS:
                batch.setdefault(asked.question, []).append(asked)
            else:
                later.append(asked)
        self._waiting = later
        return batch

    async def _answer(self, batch: dict[Question, list[_Asked]]) -> None:
        # Not their deadlines: who is in a hurry leaves, and that says nothing of the build-index.
        deadline = Deadline.after(self._timeout)
        try:
            answers = dict(zip(batch, await self._send(list(batch), deadline), strict=True))
        except CallFailed as error:
            failed = list(chain.from_iterable(batch.values()))
            if isinstance(error, Unreachable):
                # Those who waited behind it shall not wait for a host that hangs once more.
                failed += self._waiting
            for asked in _still_there(failed):
                asked.answer.set_exception(error)
        else:
            for asked in _still_there(chain.from_iterable(batch.values())):
                asked.answer.set_result(answers[asked.question])


def _still_there(callers: Iterable[_Asked]) -> Iterator[_Asked]:
    """Those who have not left."""
    return (asked for asked in callers if not asked.answer.done())


def lookup_request(questions: Sequence[Question], *, rely: bool) -> LookupRequest:
    """The questions as one request."""
    return LookupRequest(
        manifests=[(q.repository, q.reference) for q in questions if q.kind == "manifest"],
        blobs=[(q.repository, q.reference) for q in questions if q.kind == "blob"],
        rely=rely,
    )


def lookup_answers(questions: Sequence[Question], answer: Answer) -> list[Known]:
    """What was answered to the questions; raises `Unreachable` when it does not fit them."""
    answered = answer.decode(LookupAnswer)
    asked = sum(question.kind == "manifest" for question in questions)
    if (len(answered.manifests), len(answered.blobs)) != (asked, len(questions) - asked):
        raise _unfit(answer, f"{len(questions)} questions, and another number of answers")
    manifests, blobs = iter(answered.manifests), iter(answered.blobs)
    known: list[Known] = []
    for question in questions:
        if question.kind == "blob":
            known.append(next(blobs))
        elif (found := next(manifests)) is None:
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
