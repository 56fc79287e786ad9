# SPDX-License-Identifier: Apache-2.0
"""Rate limits in the event loop: those who wait are called when their turn has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from shoal.swarm.limits import Limiter, Share

_LEAST = 0.001
"""Seconds between two looks: the resolution of the loop's timers."""

Flow = Callable[[int], None]
"""Told of the bytes that it may send or receive."""


class Throttle:
    """One direction of all connections of a process."""

    def __init__(self, rate: float, per_blob: float) -> None:
        """Bytes per second over all, and for each blob; 0: no limit."""
        self._limiter = Limiter(rate, per_blob)
        self._timer: asyncio.TimerHandle | None = None

    def take(self, flow: Flow, share: Share, wanted: int) -> int:
        """Bytes that may go at once; 0: the flow is called when some may."""
        loop = asyncio.get_running_loop()
        granted = self._limiter.take(flow, share, wanted, loop.time())
        if not granted:
            self._arm(loop)
        return granted

    async def admit(self, share: Share, count: int) -> None:
        """Wait until so many bytes may pass: for those that come from elsewhere than a peer."""
        while count > 0:
            turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            def flow(granted: int, turn: asyncio.Future[int] = turn) -> None:
                if not turn.done():
                    turn.set_result(granted)

            granted = self.take(flow, share, count)
            try:
                count -= granted or await turn
            except asyncio.CancelledError:
                self.leave(flow)
                raise

    def give_back(self, share: Share, count: int) -> None:
        """Bytes that were granted did not go."""
        self._limiter.give_back(share, count)

    def leave(self, flow: Flow) -> None:
        """A flow that waits has ended."""
        self._limiter.leave(flow)

    def stop(self) -> None:
        """Call nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and (delay := self._limiter.delay(loop.time())) is not None:
            self._timer = loop.call_later(max(_LEAST, delay), self._wake)

    def _wake(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        # As of one moment: what comes in while it is handed out waits for the next look.
        now = loop.time()
        while (turn := self._limiter.next(now)) is not None:
            flow, granted = turn
            cast("Flow", flow)(granted)
        self._arm(loop)


def throttle(rate: float, per_blob: float) -> Throttle | None:
    """A throttle, if there is anything to keep to."""
    return Throttle(rate, per_blob) if rate or per_blob else None
