# SPDX-License-Identifier: Apache-2.0
"""The pieces of one blob in a file of this host.

A piece is *present* when its bytes are in the file, and *verified* when this process has seen that
they are right. Only verified pieces are given to anyone, so that a file that was damaged or cut
while the process was down is found out piece by piece, at the moment of use.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TypeVar

from shoal.model.digest import Digest
from shoal.swarm import bits as bitset
from shoal.swarm.metainfo import Metainfo
from shoal.swarm.readers import Readers

_AHEAD = 4
"""Pieces that a reader has checked in advance."""


T = TypeVar("T")


class SharedFile:
    """A file descriptor that is closed when its last user has let it go."""

    def __init__(self, path: Path, *, create: int | None = None) -> None:
        """Open for reading and writing; `create` makes a sparse file of that many bytes."""
        flags = os.O_RDWR | os.O_CLOEXEC
        self.fd = os.open(path, flags | os.O_CREAT if create is not None else flags, 0o644)
        if create is not None and os.fstat(self.fd).st_size != create:
            os.ftruncate(self.fd, create)
        self._users = 1

    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self.fd).st_size

    def stamp(self) -> tuple[int, int]:
        """Changes when somebody else writes to the file."""
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns

    def acquire(self) -> SharedFile:
        """One more user; raises OSError when the last one has let it go."""
        if self._users == 0:
            # Its number may be another file's by now.
            raise OSError(errno.EBADF, "the file was closed, as its blob was taken away")
        self._users += 1
        return self

    def release(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users == 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def shared(self) -> bool:
        """Whether somebody reads it, sends it or works on it, beside the one who opened it."""
        return self._users > 1

    def run(self, executor: Executor, work: Callable[[], T]) -> asyncio.Future[T]:
        """Work on the file in a thread; it stays open until that has ended, cancelled or not."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        self.acquire()
        running = executor.submit(work)

        def ended() -> None:
            self.release()
            _copy(running, result)

        # Not by `wrap_future`, so that the loop is woken once for both.
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(ended))
        result.add_done_callback(lambda _: running.cancel())
        return result


def _copy(done: Future[T], result: asyncio.Future[T]) -> None:
    if result.done():
        return
    if done.cancelled():
        result.cancel()
    elif (error := done.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result())


class PieceFile:
    """Reads, checks and writes the pieces of a blob; hashing and disk in the executor's threads."""

    def __init__(
        self,
        metainfo: Metainfo,
        file: SharedFile,
        executor: Executor,
        *,
        present: int,
        verified: int,
    ) -> None:
        self.metainfo = metainfo
        self.digest = Digest.parse(metainfo.digest)
        self.file = file
        self.present = present | verified
        self.verified = verified
        self._executor = executor
        self._writing = threading.Lock()
        """Threads that write to one file at a time spin in the kernel for it; here they sleep."""
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._checking: dict[int, asyncio.Future[bool]] = {}
        self._failure: Exception | None = None
        self.readers = Readers()
        self.on_damaged: Callable[[int], None] | None = None
        """Called when a piece that was thought to be here turns out wrong."""
        self._stamp: tuple[int, int] | None = file.stamp()
        """Of the file when this process last wrote to it; None while it does."""

    @property
    def complete(self) -> bool:
        """All bytes are in the file, checked or not."""
        return self.present == bitset.full(self.metainfo.count)

    @property
    def all_verified(self) -> bool:
        """All bytes are in the file and checked."""
        return self.verified == bitset.full(self.metainfo.count)

    def acquire(self) -> SharedFile:
        """The file, for one more user; raises what the download failed with."""
        if self._failure is not None:
            raise self._failure
        return self.file.acquire()

    def recheck_if_touched(self) -> bool:
        """Forget what was verified when the file was changed by somebody else; whether it was.

        Between the first `store` and `settled`, this process changes the file itself.
        """
        if self._stamp is None:
            return False
        stamp = self.file.stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.verified = 0
        return True

    def learn(self, metainfo: Metainfo) -> int:
        """More of a growing metainfo is known: returns the pieces that can be checked now.

        Raises ValueError when it is another one.
        """
        if not metainfo.grown_from(self.metainfo):
            raise ValueError(f"{metainfo.digest}: not the metainfo that it was before")
        fresh = bitset.full(metainfo.known) & ~bitset.full(self.metainfo.known)
        self.metainfo = metainfo
        return fresh

    def arrived(self, metainfo: Metainfo) -> None:
        """The file is written elsewhere in this process, and has all pieces known by now."""
        self._stamp = None
        before, self.metainfo = self.metainfo.known, metainfo
        for index in range(before, metainfo.known):
            self._mark(index)

    def settled(self) -> None:
        """This process has written its last byte to the file."""
        self._stamp = self.file.stamp()

    async def store(self, index: int, data: memoryview) -> bool:
        """Check a piece that came and write it; False when the bytes are wrong."""
        self._stamp = None
        right = await self.file.run(self._executor, lambda: self._store(index, data))
        if right:
            self._mark(index)
        return right

    def _store(self, index: int, data: memoryview) -> bool:
        if not self.metainfo.matches(index, data):
            return False
        offset, _ = self.metainfo.span(index)
        with self._writing:
            self._write(data, offset)
        return True

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            written = os.pwrite(self.file.fd, data, offset)
            data = data[written:]
            offset += written

    async def ensure(self, index: int) -> bool:
        """Whether the piece is here and right; checks it once if it is present and not verified."""
        if self.verified >> index & 1:
            return True
        if not self.present >> index & 1 or index >= self.metainfo.known:
            return False
        check = self._start_check(index)
        right = await asyncio.shield(check)
        self._checked(index, check)  # This may run before the check's own callback does.
        return right

    def _start_check(self, index: int) -> asyncio.Future[bool]:
        check = self._checking.get(index)
        if check is None:
            check = self.file.run(self._executor, lambda: self._check(index))
            self._checking[index] = check
            check.add_done_callback(lambda done: self._checked(index, done))
        return check

    def _check(self, index: int) -> bool:
        start, stop = self.metainfo.span(index)
        data = os.pread(self.file.fd, stop - start, start)
        return len(data) == stop - start and self.metainfo.matches(index, data)

    def _checked(self, index: int, done: asyncio.Future[bool]) -> None:
        if self._checking.get(index) is not done:
            return
        del self._checking[index]
        if not done.cancelled() and done.exception() is None and done.result():
            self._mark(index)
            return
        if self.verified >> index & 1:
            return  # It came from elsewhere meanwhile.
        self.present &= ~(1 << index)
        if self.on_damaged is not None:
            self.on_damaged(index)

    def _mark(self, index: int) -> None:
        bit = 1 << index
        self.present |= bit
        self.verified |= bit
        waiting = self._waiting.pop(index, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def wait(self, index: int) -> None:
        """Return when the piece is verified; raises what the download failed with."""
        while not self.verified >> index & 1:
            if self._failure is not None:
                raise self._failure
            waiting = self._waiting.get(index)
            if waiting is None:
                waiting = self._waiting[index] = asyncio.get_running_loop().create_future()
            await asyncio.shield(waiting)

    def fail(self, failure: Exception) -> None:
        """Nothing more will come: everyone who waits gets the failure."""
        self._failure = failure
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(failure)
                waiting.exception()  # Those who wait through a shield may be gone.
        self._waiting.clear()

    def verified_until(self, start: int) -> int:
        """The end of the run of verified bytes that begins at byte `start`."""
        index = start // self.metainfo.piece_size
        gap = bitset.first_gap(self.verified, index)
        if gap == index:
            return start
        return min(gap * self.metainfo.piece_size, self.metainfo.size)

    async def readable(self, start: int, stop: int) -> AsyncGenerator[tuple[int, int]]:
        """Runs of bytes [begin, end) in order, each as soon as its pieces are verified.

        Pieces that are present are checked on the way, some of them in advance. Those that are
        missing or turn out wrong are waited for; somebody else must fetch them.
        """
        size = self.metainfo.piece_size
        while start < stop:
            index = start // size
            last = (stop - 1) // size
            for ahead in range(index + 1, min(index + 1 + _AHEAD, last + 1)):
                known = ahead < self.metainfo.known
                if known and self.present >> ahead & 1 and not self.verified >> ahead & 1:
                    self._start_check(ahead)
            if not await self.ensure(index):
                await self.wait(index)
            until = min(self.verified_until(start), stop)
            yield start, until
            start = until

    def close(self) -> None:
        """Let the file go."""
        self.file.release()
