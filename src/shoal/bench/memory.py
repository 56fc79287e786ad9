# SPDX-License-Identifier: Apache-2.0
"""Memory as a host finds it that is in use.

On a virtual machine memory that nobody has used for some seconds is the host's again, and whoever
writes to it next pays for that, up to twenty times the cost of the write itself. So a bench fills
as much of the page cache as is going to be written, and gives it back in step with that.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

_AHEAD = 256 * 1024 * 1024
"""Bytes that are free beside those that were when all was taken."""

_BLOCK = 1024 * 1024
_GLANCE = 0.02


class PageCache:
    """A file that is in the page cache and on disk, and is given back from its end on."""

    def __init__(self, path: Path, size: int) -> None:
        """Write `size` bytes; blocks."""
        self.left = size
        self._path = path
        block = bytes(_BLOCK)
        began = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(-(-size // _BLOCK)):
                file.write(block)
            self.took_s = time.perf_counter() - began
            """Seconds that the write took, without the disk."""
            os.fsync(file.fileno())  # Too much that waits for the disk would hold up other writers.

    def give_back(self, size: int) -> None:
        """Let go of `size` bytes, as far as there are so many; blocks."""
        self.left = max(0, self.left - max(0, size))
        os.truncate(self._path, self.left)

    def close(self) -> None:
        """Let go of the rest; blocks."""
        self._path.unlink()


def free_memory() -> int:
    """Bytes of memory that hold nothing."""
    return int(psutil.virtual_memory().free)


@asynccontextmanager
async def warm_memory(
    folder: Path, size: int, *, free: Callable[[], int] = free_memory
) -> AsyncIterator[float]:
    """Whoever writes up to `size` bytes meanwhile finds memory that was used just before.

    Yields the seconds that the first write to it took. Takes as much room in the folder.
    """
    cache = await asyncio.to_thread(PageCache, folder / "scratch", size)
    giving = asyncio.create_task(_give_back_in_step(cache, free))
    try:
        yield cache.took_s
    finally:
        giving.cancel()
        with suppress(asyncio.CancelledError):
            await giving
        await asyncio.to_thread(cache.close)


async def _give_back_in_step(cache: PageCache, free: Callable[[], int]) -> None:
    keep_free = free() + _AHEAD
    while cache.left:
        due = keep_free - free()
        if due > 0:
            await asyncio.to_thread(cache.give_back, due)
        await asyncio.sleep(_GLANCE)
