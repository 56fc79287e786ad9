# SPDX-License-Identifier: Apache-2.0
"""A bound on the bytes per second of background work, over all that does it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from shoal.swarm.limits import Bucket
from shoal.swarm.meter import Meter

SLICE = 1024 * 1024
"""Most bytes that are asked for at once."""

_BURST = 0.1
"""Seconds of the rate that may be saved up; at least a slice."""


class Bandwidth:
    """Gives out bytes, first come, first served, and measures them. For one event loop."""

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`rate`: bytes per second; 0: no limit. `clock` gives seconds, and `sleep` waits some."""
        self._clock = clock
        self._sleep = sleep
        self.rate = rate
        self._bucket = Bucket(rate, max(SLICE, rate * _BURST)) if rate else None
        self._turn = asyncio.Lock()
        self._meter = Meter()

    async def take(self, count: int) -> None:
        """Wait until `count` bytes, at most `SLICE`, may go."""
        if self._bucket is not None:
            async with self._turn:
                if wait := self._bucket.wait(count, self._clock()):
                    await self._sleep(wait)
                self._bucket.take(count, self._clock())
        self._meter.add(count, self._clock())

    def measured(self) -> float:
        """Bytes per second of the last seconds."""
        return self._meter.rate(self._clock())

    def slowest(self, takers: int, most: int) -> int:
        """A rate that each of `takers` at the same time gets for sure, at most `most`.

        For deadlines of transfers.
        """
        return min(most, max(1, round(self.rate / (2 * takers)))) if self.rate else most
