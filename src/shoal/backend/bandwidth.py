# SPDX-License-Identifier: Apache-2.0
"""Limits of what is read from and written to a backend, spent chunk by chunk.

A blob of any size keeps to the rate, because no more than one chunk is taken from the bucket at a
time. All transfers of the backend share it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from shoal.backend.asking import Call, put_off
from shoal.backend.base import Backend, Content, Listing, Name, Page, Source
from shoal.backend.sources import as_source
from shoal.swarm.limits import Bucket
from shoal.web.deadline import LONGEST, Deadline

_BURST = 0.25
"""Seconds of the rate that may be saved up."""


class Meter:
    """The budget of one direction."""

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`rate`: bytes per second; 0: no limit."""
        self._bucket = Bucket(rate, rate * _BURST) if rate else None
        self._clock = clock
        self._sleep = sleep

    async def spend(self, count: int) -> None:
        """Take bytes, and wait until what was taken by all is within the rate again."""
        if self._bucket is None:
            return
        now = self._clock()
        self._bucket.take(count, now)
        # Taken beforehand, a debt: who comes later waits longer, so the order is that of coming.
        wait = self._bucket.wait(0, now)
        if wait > 0:
            await self._sleep(wait)


class LimitedBackend:
    """A backend whose transfers keep to a rate in each direction.

    The time that a `put` waits for the rate does not count towards its deadline: it would else
    fail again and again where the limit is low and the blob large.
    """

    def __init__(self, backend: Backend, *, read: Meter, write: Meter) -> None:
        self._backend = backend
        self._read = read
        self._write = write

    @property
    def description(self) -> str:
        return self._backend.description

    @property
    def read_only(self) -> bool:
        return self._backend.read_only

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        return await self._backend.stat(name, deadline=deadline)

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        async with self._backend.get(name, start, stop, deadline=deadline) as content:
            yield _Metered(content, self._read)

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        call = Call("PUT", self.description)
        content = await as_source(call, source)
        async with call.within(deadline) as bound:
            paced = _Metered(content, self._write, bound)
            # The bound is the deadline, put off by what the limit costs; the storage gets the time.
            await self._backend.put(name, paced, deadline=Deadline.after(LONGEST))

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        return await self._backend.list(listing, after=after, limit=limit, deadline=deadline)

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        return await self._backend.delete(name, deadline=deadline)

    async def close(self) -> None:
        await self._backend.close()


class _Metered:
    """Content or a source whose chunks come no faster than the meter lets them."""

    def __init__(
        self, inner: Content | Source, meter: Meter, bound: asyncio.Timeout | None = None
    ) -> None:
        """`bound` is put off by the time that is spent waiting for the meter."""
        self.size = inner.size
        self._inner = inner
        self._meter = meter
        self._bound = bound

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner.chunks():
            if self._bound is None:
                await self._meter.spend(len(chunk))
            else:
                ends, began = self._bound.when(), time.monotonic()
                put_off(self._bound, None)
                await self._meter.spend(len(chunk))
                if ends is not None:
                    put_off(self._bound, ends + time.monotonic() - began)
            yield chunk
