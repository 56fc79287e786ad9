# SPDX-License-Identifier: Apache-2.0
"""Scrub: every blob on disk is read again, slowly, and checked against its digest and its pieces.

Disks lose bits without saying so. What is found damaged is set aside and fetched anew; what cannot
be read at all, too. The reading leaves no trace: a copy's age counts by its time of access, and the
page cache keeps what is asked for.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import structlog

from shoal.model.digest import Digest, new_hasher
from shoal.origin import upkeep_metrics as metrics
from shoal.origin.bandwidth import SLICE, Bandwidth
from shoal.origin.config import ScrubConfig
from shoal.origin.retention import Copy
from shoal.store.durable import write_plainly
from shoal.store.full import is_unreadable
from shoal.swarm.metainfo import Metainfo, PieceHasher, piece_size_for

SAVE_EVERY = 30.0
"""Seconds between two writes of the position: at most so much is read again after a crash."""

_BATCH = 256

_NICE = 19

R = TypeVar("R")

log = structlog.get_logger()


class Copies(Protocol):
    """The blobs on this disk (`shoal.origin.local.LocalBlobs`). Blocks."""

    def copies(self, *, after: str = "") -> Iterator[Copy]: ...
    def count(self) -> int: ...
    def recheck(self, digest: Digest) -> bool: ...
    def set_aside(self, digest: Digest) -> None: ...
    def write_metainfo(self, metainfo: Metainfo) -> None: ...
    def read_quietly(
        self, digest: Digest
    ) -> AbstractContextManager[tuple[int, Metainfo | None]]: ...


class Position(msgspec.Struct):
    """How far a scrub has come; kept in a file."""

    started: float
    """Epoch seconds."""
    after: str = ""
    """The digest that was checked last."""
    blobs: int = 0
    bytes: int = 0
    damaged: int = 0
    finished: float | None = None


class Scrubber:
    """Reads in one thread of the lowest priority."""

    def __init__(
        self,
        copies: Copies,
        file: Path,
        config: ScrubConfig,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`file` keeps the position; `clock` gives epoch seconds."""
        self._copies = copies
        self._file = file
        self._config = config
        self._clock = clock
        self._bandwidth = Bandwidth(config.bandwidth)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub", initializer=_be_nice)
        self.position: Position | None = None
        self.last: Position | None = None
        """The last scrub that has seen all."""
        self.total = 0
        """Blobs that there were when the process began to scrub."""

    @property
    def enabled(self) -> bool:
        """Whether the config wants it."""
        return self._config.bandwidth > 0 and self._config.interval > 0

    def measured(self) -> float:
        """Bytes per second that are being read."""
        return self._bandwidth.measured()

    async def run(self) -> None:
        """Scrub for good: each time all blobs, then wait until `interval` has passed."""
        self.last = await self._call(self._load)
        while True:
            try:
                await self.scrub()
            except OSError as error:
                log.exception("scrub failed", error=str(error))
                await asyncio.sleep(min(600.0, self._config.interval))
                continue
            started = self.last.started if self.last is not None else 0.0
            # A clock that was put back does not stop it for longer than one interval.
            left = started + self._config.interval - self._clock()
            await asyncio.sleep(min(max(left, 1.0), self._config.interval))

    async def close(self) -> None:
        """Wait for the thread. Call it after `run` was cancelled."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def scrub(self) -> Position:
        """Check all blobs once, from where the last process stopped."""
        last = self.last
        if last is not None and last.finished is None:
            position = last
        elif last is not None and 0 <= self._clock() - last.started < self._config.interval:
            return last  # one that began in the future was begun by a clock that was wrong
        else:
            position = Position(self._clock())
        self.position = position
        self.total = await self._call(self._copies.count)
        copies = self._copies.copies(after=position.after)
        saved = self._clock()
        try:
            while batch := await self._call(_next, copies):
                for copy in batch:
                    await self._check_one(copy, position)
                    if self._clock() - saved >= SAVE_EVERY:
                        await self._call(self._save, position)
                        saved = self._clock()
            position.finished = self._clock()
        finally:
            self.last, self.position = position, None
            await asyncio.shield(self._submit(self._save, position))
        metrics.LAST_SCRUB.set(position.finished)
        log.info("scrub done", blobs=position.blobs, bytes=position.bytes, damaged=position.damaged)
        return position

    async def _check_one(self, copy: Copy, position: Position) -> None:
        try:
            await self._check(copy, position)
        except OSError as error:
            # On a disk that takes no writes it stays where it is. The others are to be read, too.
            log.error("a copy cannot be set aside", digest=str(copy.digest), error=str(error))  # noqa: TRY400
            position.damaged += 1
            position.after = str(copy.digest)

    async def _check(self, copy: Copy, position: Position) -> None:
        digest = copy.digest
        good = True
        try:
            with ExitStack() as stack:
                file, metainfo = await self._call(
                    stack.enter_context, self._copies.read_quietly(digest)
                )
                good = await self._read(digest, file, metainfo, position)
        except FileNotFoundError:
            return  # It was removed meanwhile.
        except OSError as error:
            log.error("a blob cannot be read", digest=str(digest), error=str(error))  # noqa: TRY400
            if not is_unreadable(error):
                position.after = str(digest)  # No sign of rot: the next scrub looks at it again.
                return
            await self._call(self._copies.set_aside, digest)
            good = False
        else:
            if not good:
                # It may have been replaced while it was read; and who sets it aside must be sure.
                good = await self._call(self._copies.recheck, digest)
        if not good:
            position.damaged += 1
            metrics.ROTTEN.inc()
            log.error("scrub found a damaged blob", digest=str(digest), size=copy.size)
        position.blobs += 1
        position.after = str(digest)
        metrics.SCRUBBED.inc()

    async def _read(
        self, digest: Digest, file: int, metainfo: Metainfo | None, position: Position
    ) -> bool:
        size = (await self._call(os.fstat, file)).st_size
        hasher = new_hasher(digest.algorithm)
        piece_size = piece_size_for(size) if metainfo is None else metainfo.piece_size
        pieces = PieceHasher(piece_size)

        def step(start: int) -> int:
            data = os.pread(file, SLICE, start)
            hasher.update(data)
            pieces.update(data)
            os.posix_fadvise(file, start, len(data), os.POSIX_FADV_DONTNEED)
            return len(data)

        start = 0
        while True:
            await self._bandwidth.take(max(1, min(SLICE, size - start)))
            count = await self._call(step, start)
            if not count:
                break
            start += count
            position.bytes += count
            metrics.SCRUBBED_BYTES.inc(count)
        if hasher.hexdigest() != digest.hex:
            return False
        found = Metainfo(str(digest), start, piece_size, pieces.finish())
        if found != metainfo:
            log.warning("metainfo made anew", digest=str(digest), size=start)
            await self._call(self._copies.write_metainfo, found)
        return True

    # -- the position ---------------------------------------------------------------------------

    def _load(self) -> Position | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Position)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("scrub begins anew", file=str(self._file), error=str(error))
            return None

    def _save(self, position: Position) -> None:
        with suppress(OSError):  # A full or lost disk is found by others; this can be done again.
            write_plainly(self._file, msgspec.json.encode(position))

    async def _call(self, function: Callable[..., R], *args: object) -> R:
        return await self._submit(function, *args)

    def _submit(self, function: Callable[..., R], *args: object) -> asyncio.Future[R]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _be_nice() -> None:
    """Let this thread run when nothing else does. Linux has a priority for each thread."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _next(copies: Iterator[Copy]) -> list[Copy]:
    return list(islice(copies, _BATCH))
