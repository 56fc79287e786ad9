# SPDX-License-Identifier: Apache-2.0
"""Taking in a blob: hashed and written while it comes, verified before anyone can see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from shoal.model.digest import Digest
from shoal.model.errors import DigestInvalid, InsufficientStorage, SizeInvalid, TooLarge
from shoal.origin.measuring import measure
from shoal.store.blobs import BlobStore
from shoal.store.full import is_full
from shoal.store.ingest import Stalled, ingest
from shoal.store.room import Room
from shoal.store.threads import in_thread, submit
from shoal.store.writer import BlobWriter
from shoal.swarm.metainfo import Metainfo, PieceHasher, piece_size_for

SYNC_EVERY = 32 * 1024 * 1024
"""Bytes after which what was written is sent to the disk, so that the last fsync waits for less."""


@dataclass(frozen=True, slots=True)
class Received:
    """A verified blob in a temp file, which its receiver keeps or discards."""

    file: Path
    metainfo: Metainfo

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.metainfo.size

    def discard(self) -> None:
        """Remove the temp file, unless it was moved into place. Blocks."""
        self.file.unlink(missing_ok=True)


class Arriving:
    """A blob on its way into a temp file: what can be given to others before it is whole.

    The digest of the whole is not verified yet: pieces are what the sender gave, no more.
    """

    def __init__(self, digest: Digest, size: int, writer: BlobWriter, pieces: PieceHasher) -> None:
        self.digest = digest
        self.size = size
        """Bytes that it will have."""
        self._writer = writer
        self._pieces = pieces

    @property
    def file(self) -> Path:
        """Where it is being written."""
        return self._writer.path

    @property
    def arrived(self) -> int:
        """Bytes that are in the file."""
        return self._writer.size

    @property
    def piece_size(self) -> int:
        """Bytes of each piece but the last."""
        return self._pieces.piece_size

    @property
    def piece_hashes(self) -> bytes:
        """The BLAKE3 digests of the pieces that are whole so far, in order."""
        return self._pieces.known


class Receiver:
    """Receives blobs into temp files of the store."""

    def __init__(
        self,
        store: BlobStore,
        *,
        idle_timeout: float,
        max_blob: int,
        room: Room | None = None,
    ) -> None:
        """`idle_timeout` in seconds; `max_blob` in bytes, 0 for no limit.

        `room`: asked for room before a blob is taken in; None: the disk alone is the limit.
        """
        self._store = store
        self._room = room
        self._idle_timeout = idle_timeout
        self._max_blob = max_blob

    async def receive(
        self,
        digest: Digest,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        watch: Callable[[Arriving], None] = lambda _: None,
        evict: bool = True,
    ) -> Received:
        """Take a whole blob whose digest is known; its size too, when it was announced.

        With the size, the pieces are hashed in the same pass, and `watch` is told of the blob when
        its temp file is there; without it, they are hashed afterwards. `evict` as in
        `Room.reserve`. On any error nothing is kept. Raises `DigestInvalid`, `SizeInvalid`,
        `TooLarge`, `Stalled`, `InsufficientStorage` (the disk is full) and what the source raises.
        """
        if size is not None and self._max_blob and size > self._max_blob:
            raise TooLarge(f"{digest}: {size} bytes; this origin takes at most {self._max_blob}")
        pieces = None if size is None else PieceHasher(piece_size_for(size))
        file = await in_thread(self._store.temp, digest)
        async with self._room_for(digest, size or 0, file, evict=evict):
            return await self._receive(file, digest, source, size, pieces, watch)

    async def _receive(  # noqa: PLR0917 -- what `receive` found out
        self,
        file: Path,
        digest: Digest,
        source: AsyncIterator[bytes],
        size: int | None,
        pieces: PieceHasher | None,
        watch: Callable[[Arriving], None],
    ) -> Received:
        with refusing_when_full(digest), self._store.volumes.watching(file):
            writer = await in_thread(BlobWriter, file, digest.algorithm, pieces)
        try:
            if size is not None and pieces is not None:
                watch(Arriving(digest, size, writer, pieces))
            await self._take(digest, source, writer)
            if size is not None and writer.size != size:
                raise SizeInvalid(f"{digest}: {size} bytes announced, {writer.size} came")
            return await in_thread(_verified, digest, writer, writer.path, pieces)
        except BaseException:
            await asyncio.shield(submit(writer.discard))
            raise

    async def detach(self, digest: Digest, writer: BlobWriter) -> Received:
        """Take a session's file out of it when it has the digest; its pieces are hashed now.

        Raises `DigestInvalid`; the file then stays the session's.
        """
        file = self._store.temp(beside=writer.path)
        return await in_thread(_verified, digest, writer, file, None)

    async def skip(self, source: AsyncIterator[bytes]) -> None:
        """Let a body pass that is not needed. Raises `Stalled` and what the source raises."""
        try:
            while True:
                async with asyncio.timeout(self._idle_timeout):
                    if await anext(source, None) is None:
                        return
        except TimeoutError as error:
            raise Stalled(f"no byte came for {self._idle_timeout:g} s") from error

    async def take(self, digest: Digest, source: AsyncIterator[bytes], writer: BlobWriter) -> None:
        """Append what comes to the writer. Raises as `receive` does, but checks no digest."""
        async with self._room_for(digest, 0, writer.path):
            await self._take(digest, source, writer)

    def _room_for(
        self, digest: Digest, size: int, file: Path, *, evict: bool = True
    ) -> AbstractAsyncContextManager[None]:
        if self._room is None:
            return nullcontext()
        return self._room.reserve(digest, size, file, evict=evict)

    async def _take(self, digest: Digest, source: AsyncIterator[bytes], writer: BlobWriter) -> None:
        early = _EarlySync(source, writer)
        limit = self._max_blob - writer.size if self._max_blob else None
        with refusing_when_full(digest), self._store.volumes.watching(writer.path):
            try:
                await ingest(early.chunks(), writer, limit=limit, idle_timeout=self._idle_timeout)
            finally:
                await early.settle()


def _verified(
    digest: Digest, writer: BlobWriter, file: Path, pieces: PieceHasher | None
) -> Received:
    """The writer's file, renamed to `file`, when it has the digest."""
    found = writer.digest(digest.algorithm)
    writer.close()
    if found != digest:
        raise DigestInvalid(
            f"the {writer.size} bytes that came have the digest {found}, not {digest}",
            detail={"expected": str(digest), "found": str(found), "size": writer.size},
        )
    if pieces is None:
        with writer.path.open("rb", buffering=0) as written:
            metainfo = measure(written, digest.algorithm)
    else:
        metainfo = Metainfo(str(digest), writer.size, pieces.piece_size, pieces.finish())
    writer.path.rename(file)
    return Received(file, metainfo)


class _EarlySync:
    """Syncs a file every `SYNC_EVERY` bytes while the chunks for it pass by."""

    def __init__(self, source: AsyncIterator[bytes], writer: BlobWriter) -> None:
        self._source = source
        self._writer = writer
        self._running: asyncio.Future[None] | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The source's chunks."""
        unsynced = 0
        async for chunk in self._source:
            yield chunk
            unsynced += len(chunk)
            if unsynced >= SYNC_EVERY and (self._running is None or self._running.done()):
                await self.settle()
                self._running = submit(self._writer.sync)
                unsynced = 0

    async def settle(self) -> None:
        """Wait for the sync under way. The disk tells an error once, so it must be raised here."""
        running, self._running = self._running, None
        if running is not None:
            await running


@contextmanager
def refusing_when_full(digest: Digest) -> Iterator[None]:
    """A full disk becomes an answer that says so."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise InsufficientStorage(
            f"{digest}: no room on this origin's disk ({error.strerror}); nothing was kept"
        ) from error
