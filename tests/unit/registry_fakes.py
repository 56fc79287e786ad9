# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG002 - the fakes have the signatures of what they stand for
"""Origins and a build-index in memory, for tests of the proxy and of the registry API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from shoal.model.digest import Digest
from shoal.model.errors import ManifestBlobUnknown, NameUnknown
from shoal.model.manifest import IndexChildren, parse_manifest
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound, Unreachable

QUORUM = 2


class MemoryBlob:
    """A blob of `shoal.web.bodies` that is held in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)
        self.closed = False

    async def segments(self, start: int, stop: int) -> AsyncIterator[bytes]:
        for offset in range(start, stop, 1000):
            yield self._content[offset : min(offset + 1000, stop)]

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


@dataclass
class Copies:
    copies: dict[Digest, frozenset[str]]


@dataclass
class MemoryOrigins:
    """Three origins that hold the same blobs, unless a test says otherwise."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    copies: dict[Digest, int] = field(default_factory=dict)
    failure: str | None = None
    gate: asyncio.Event | None = None
    uploading: asyncio.Event = field(default_factory=asyncio.Event)
    deadlines: list[float] = field(default_factory=list)
    opened: list[MemoryBlob] = field(default_factory=list)

    def hold(self, content: bytes, copies: int = 3) -> Digest:
        digest = Digest.of(content)
        self.blobs[digest], self.copies[digest] = content, copies
        return digest

    async def upload(
        self, digest: Digest, source: Path | int, size: int, *, deadline: Deadline
    ) -> object:
        assert isinstance(source, Path)
        self.uploading.set()
        self.deadlines.append(deadline.remaining())
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise Unreachable("PUT", f"/internal/blobs/{digest}", self.failure)
        content = await asyncio.to_thread(source.read_bytes)
        assert len(content) == size
        assert Digest.of(content, digest.algorithm) == digest
        self.blobs[digest], self.copies[digest] = content, 3
        return None

    async def stat(self, digest: Digest, *, deadline: Deadline) -> int | None:
        self._ask(digest)
        content = self.blobs.get(digest)
        return None if content is None else len(content)

    async def stat_many(self, digests: Iterable[Digest], *, deadline: Deadline) -> Copies:
        hosts = ["a:1", "b:1", "c:1"]
        return Copies(
            {
                digest: frozenset(hosts[: self.copies[digest]])
                for digest in digests
                if digest in self.blobs and self.failure is None
            }
        )

    async def read(self, digest: Digest, *, deadline: Deadline, limit: int) -> bytes:
        self._ask(digest)
        content = self._get(digest)
        if len(content) > limit:
            raise Unreachable("GET", f"/internal/blobs/{digest}", "more bytes than the limit")
        return content

    async def open(self, digest: Digest, *, deadline: Deadline) -> MemoryBlob:
        self._ask(digest)
        blob = MemoryBlob(self._get(digest))
        self.opened.append(blob)
        return blob

    def _ask(self, digest: Digest) -> None:
        if self.failure is not None:
            raise Unreachable("GET", f"/internal/blobs/{digest}", self.failure)

    def _get(self, digest: Digest) -> bytes:
        try:
            return self.blobs[digest]
        except KeyError:
            raise NotFound("GET", f"/internal/blobs/{digest}", "on no origin", status=404) from None


@dataclass
class MemoryIndex:
    """A build-index that checks dependencies at `origins`."""

    origins: MemoryOrigins
    entries: dict[tuple[str, str], Digest] = field(default_factory=dict)
    given: list[bytes | None] = field(default_factory=list)
    """The bytes that came with each manifest."""

    async def put_tag(
        self,
        repository: str,
        tag: str,
        digest: Digest,
        manifest: bytes | None,
        media_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> None:
        await self.check(repository, digest, manifest, media_type, deadline=deadline)
        self.entries[repository, tag] = digest

    async def check(
        self,
        repository: str,
        digest: Digest,
        manifest: bytes | None,
        media_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> None:
        self.given.append(manifest)
        if manifest is None:
            if digest not in self.origins.blobs:
                raise ManifestBlobUnknown.missing([digest], "all origins were asked")
            manifest = self.origins.blobs[digest]
        parsed = parse_manifest(manifest, media_type)
        needed = {digest} | {child.digest for child in (*parsed.blobs(), *parsed.children)}
        if missing := needed - self.origins.blobs.keys():
            raise ManifestBlobUnknown.missing(missing, "all origins were asked")

    async def get_tag(self, repository: str, tag: str, *, deadline: Deadline) -> Digest | None:
        return self.entries.get((repository, tag))

    async def tags(self, repository: str, n: int, last: str, *, deadline: Deadline) -> list[str]:
        tags = sorted(tag for name, tag in self.entries if name == repository)
        if not tags:
            raise NameUnknown(f"no tag in {repository}")
        return [tag for tag in tags if tag > last][:n]

    async def repositories(self, n: int, last: str, *, deadline: Deadline) -> list[str]:
        return [name for name in sorted({name for name, _ in self.entries}) if name > last][:n]
