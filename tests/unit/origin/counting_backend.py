# SPDX-License-Identifier: Apache-2.0
"""A backend in memory that counts what is done to it, and fails when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shoal.backend.base import BlobName, Content, Listing, Name, Page, Source
from shoal.model.digest import Digest
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound, Unreachable

REPOSITORY = "team/app"
STORAGE = "memory://bucket"


@dataclass
class _Bytes:
    size: int
    data: bytes
    broken: bool
    pause: asyncio.Event | None

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), 1000):
            if self.pause is not None and start >= len(self.data) // 2:
                await self.pause.wait()
            yield self.data[start : start + 1000]
        if self.broken:
            raise Unreachable("GET", STORAGE, f"ended after {len(self.data)} of {self.size} bytes")


@dataclass
class CountingBackend:
    """Blobs by digest, whatever the repository."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    failure: str | None = None
    forgets: bool = False
    """A put that is acknowledged and stores nothing."""
    cut: int | None = None
    """Bytes after which a body breaks off."""
    gate: asyncio.Event | None = None
    pause: asyncio.Event | None = None
    """What a body waits for in its middle."""
    description: str = STORAGE
    read_only: bool = False
    stats: int = 0
    gets: int = 0
    puts: list[Digest] = field(default_factory=list)

    def _look(self, name: Name) -> tuple[Digest, bytes | None]:
        assert isinstance(name, BlobName)
        if self.failure is not None:
            raise Unreachable("GET", self.description, self.failure)
        return name.digest, self.blobs.get(name.digest)

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        self.stats += 1
        _, data = self._look(name)
        return None if data is None else len(data)

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        assert (start, stop) == (0, None)
        self.gets += 1
        if self.gate is not None:
            await self.gate.wait()
        digest, data = self._look(name)
        if data is None:
            raise NotFound("GET", self.description, f"no {digest}")
        yield _Bytes(len(data), data[: self.cut], self.cut is not None, self.pause)

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        assert isinstance(source, Path)
        digest, _ = self._look(name)
        if self.gate is not None:
            await self.gate.wait()
        self.puts.append(digest)
        if not self.forgets:
            self.blobs[digest] = await asyncio.to_thread(source.read_bytes)

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        raise AssertionError("nobody lists blobs here")

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        raise AssertionError("nobody deletes blobs here")

    async def close(self) -> None:
        pass


@dataclass
class Matched:
    """The entry of a config."""

    backend: CountingBackend
    key: str = "bucket"
    upstream: bool = False

    async def stored(self, name: Name, size: int, *, deadline: Deadline) -> bool:
        return await self.backend.stat(name, deadline=deadline) == size


@dataclass
class Backends:
    """Repositories below ``team/`` have this backend, those of ``docker.io`` are pulled through."""

    backend: CountingBackend
    empty: bool = False

    def key_for_blobs(self, repository: str) -> str | None:
        matched = self.for_blobs(repository)
        return None if matched is None else matched.key

    def for_blobs(self, repository: str) -> Matched | None:
        if repository.startswith("docker.io/"):
            return Matched(self.backend, "upstream docker.io", upstream=True)
        return Matched(self.backend) if repository.startswith("team/") else None
