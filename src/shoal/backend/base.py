# SPDX-License-Identifier: Apache-2.0
"""The interface of all storage that Shoal does not keep itself.

What is stored has a name with a meaning, not a path: each kind of storage decides what becomes of
it. All errors are those of `shoal.web.failures`: `NotFound` is an answer, `Unreachable` and
`Overloaded` say that none could be had, `Rejected` that the same request will fail again. Their
texts name the storage (never its credentials), the name, and what to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from shoal.model.digest import Digest
from shoal.web.deadline import Deadline


@dataclass(frozen=True, slots=True)
class BlobName:
    """A blob (a layer, a config or a manifest) as a repository's storage has it."""

    repository: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class TagName:
    """A tag; its content is the digest's text."""

    repository: str
    tag: str


@dataclass(frozen=True, slots=True)
class LinkName:
    """That a blob or manifest belongs to a repository; its content is the digest's text.

    In the layout of distribution: ``_layers/…/link`` and ``_manifests/revisions/…/link``.
    """

    repository: str
    digest: Digest
    kind: Literal["blob", "manifest"]


Name = BlobName | TagName | LinkName


@dataclass(frozen=True, slots=True)
class TagsOf:
    """The listing of a repository's tags, each as it is called."""

    repository: str


@dataclass(frozen=True, slots=True)
class Repositories:
    """The listing of the repositories that have a tag, each by its name."""


@dataclass(frozen=True, slots=True)
class Blobs:
    """The listing of the blobs under a repository's path, each as the text of its digest."""

    repository: str


Listing = TagsOf | Repositories | Blobs


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing, in lexical order."""

    names: tuple[str, ...]
    last: str | None
    """Pass it as `after` for the next page; None: this was the last one."""


class Content(Protocol):
    """What a `get` brings."""

    size: int
    """Bytes of the whole object, whatever part was asked for."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes asked for, in order; raises `Unreachable` when they end before their end."""
        ...


class Source(Protocol):
    """What a `put` sends, when it is neither a file nor bytes in memory."""

    size: int

    def chunks(self) -> AsyncIterator[bytes]:
        """The content from its beginning, anew with each call; each chunk at most 1 MiB."""
        ...


class Backend(Protocol):
    """One place that stores blobs, tags, or both."""

    @property
    def description(self) -> str:
        """What it is, for errors and logs, such as ``s3://bucket/root``; no secrets."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether `put` and `delete` are refused (`Rejected`)."""
        ...

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        """Bytes that it has under the name, or None: it was asked, and it is not there."""
        ...

    def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AbstractAsyncContextManager[Content]:
        """Bytes [start, stop) as a stream, to the end without `stop`.

        The deadline is for the beginning of the answer; from then on only a stall ends it
        (`Unreachable`). Raises `NotFound`. Nothing is verified here: who keeps a blob checks its
        digest first.
        """
        ...

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        """Store or replace; on return it is as durable as the storage makes anything.

        A reader sees the old content or the new one, whole. A file is streamed, in parts where it
        is large; the deadline must leave time for the transfer.
        """
        ...

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        """A page of at most `limit` names that come after `after`; `Rejected` if it cannot list."""
        ...

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        """Remove it; whether it was there, or True where the storage does not tell."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...
