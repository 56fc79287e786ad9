# SPDX-License-Identifier: Apache-2.0
"""The memory of a host in use, for what is measured on a virtual machine.

There, memory that nobody uses is the host's again, and the first write to a page costs up to twenty
times what a write costs: files that are received would be charged with it, on a machine that was
idle before and not on one at work.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

_STEP = 16 * 1024 * 1024
_GLANCE = 0.01


@asynccontextmanager
async def memory_in_use(size: int) -> AsyncIterator[float]:
    """Have `size` bytes of memory that were written before, half of what is available at most.

    Yields the seconds that it took to write them. Inside, they are given back at the pace at which
    free memory goes down: so what is written there takes these pages, and no others.
    """
    steps = min(size, psutil.virtual_memory().available // 2) // _STEP
    with mmap.mmap(-1, max(1, steps) * _STEP) as held:
        began = time.perf_counter()
        await asyncio.to_thread(_touch, held)
        took = time.perf_counter() - began
        giving = asyncio.create_task(_give_back(held))
        try:
            yield took
        finally:
            giving.cancel()
            await asyncio.wait([giving])


def _touch(held: mmap.mmap) -> None:
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1


async def _give_back(held: mmap.mmap) -> None:
    level = psutil.virtual_memory().free
    for start in range(0, len(held), _STEP):
        while psutil.virtual_memory().free >= level:  # noqa: ASYNC110 -- the kernel tells of none
            await asyncio.sleep(_GLANCE)
        held.madvise(mmap.MADV_DONTNEED, start, _STEP)
