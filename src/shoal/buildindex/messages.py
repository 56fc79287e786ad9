# SPDX-License-Identifier: Apache-2.0
"""What callers of a build-index and it say to each other, as JSON."""

from __future__ import annotations

from typing import Annotated

import msgspec

MAX_QUESTIONS = 1_000
"""Manifests and blobs in one lookup together, or digests in one question for what is wanted."""

_Pairs = Annotated[list[tuple[str, str]], msgspec.Meta(max_length=MAX_QUESTIONS)]


class LookupRequest(msgspec.Struct, frozen=True):
    """Whether repositories have manifests and blobs."""

    manifests: _Pairs = []
    """Repository and tag or digest."""

    blobs: _Pairs = []
    """Repository and digest."""

    rely: bool = False
    """The caller tells its own caller that it need not send what is found."""

    through: bool = False
    """Backends and upstreams are asked for what the records do not say; that takes its time."""


class ManifestFound(msgspec.Struct, frozen=True):
    """A manifest that a repository has, or what else a tag points to."""

    digest: str
    media_type: str
    """Empty when there is no manifest record of what the tag points to."""

    size: int
    """Bytes; 0 when there is no manifest record."""


class LookupAnswer(msgspec.Struct, frozen=True):
    """In the order of the question."""

    manifests: list[ManifestFound | None]
    blobs: list[bool]

    open_manifests: list[int] = []
    """Numbers of those of `manifests` that only a question with `through` answers."""

    open_blobs: list[int] = []


class WantedRequest(msgspec.Struct, frozen=True):
    """Which of these digests any repository needs."""

    digests: Annotated[list[str], msgspec.Meta(max_length=MAX_QUESTIONS)]


class WantedAnswer(msgspec.Struct, frozen=True):
    """Those that are needed."""

    wanted: list[str]
