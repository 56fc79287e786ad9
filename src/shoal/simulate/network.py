# SPDX-License-Identifier: Apache-2.0
"""The virtual clock and the links. Times are seconds, rates bytes/s."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any


class Clock:
    """Runs what is due in order of time, and among equals in the order in which it was put in."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._stopped = False

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Call `what(*args)` at that time."""
        heapq.heappush(self._due, (when, next(self._order), what, args))

    def after(self, wait: float, what: Callable[..., None], *args: Any) -> None:
        """Call `what(*args)` that much later."""
        heapq.heappush(self._due, (self.now + wait, next(self._order), what, args))

    def stop(self) -> None:
        """End the run."""
        self._stopped = True

    def run(self, until: float) -> None:
        """Run until `stop`, or while something is due by `until`."""
        due = self._due
        pop = heapq.heappop
        while due and not self._stopped:
            when, _, what, args = pop(due)
            if when > until:
                return
            self.now = when
            what(*args)


class Uplink:
    """A host's sending side: what is under way at the same time gets equal shares of the rate.

    All pieces have the same size, so they end in the order in which they began, and only the next
    end needs to be on the clock.
    """

    def __init__(
        self, clock: Clock, rate: float, size: float, on_sent: Callable[[Any, float], None]
    ) -> None:
        """`on_sent(transfer, began)` is called as a transfer's last byte leaves."""
        self._clock = clock
        self._rate = rate
        self._size = size
        self._on_sent = on_sent
        self._under_way: deque[tuple[float, float, Any]] = deque()
        self._served = 0.0
        """Bytes that a transfer under way since the start would have been sent."""
        self._as_of = 0.0
        self._version = 0
        self.stopped = False

    def begin(self, transfer: Any) -> None:
        """Send one piece."""
        now = self._clock.now
        self._advance(now)
        self._under_way.append((self._served + self._size, now, transfer))
        self._plan()

    def _advance(self, now: float) -> None:
        if self._under_way:
            self._served += (now - self._as_of) * self._rate / len(self._under_way)
        self._as_of = now

    def _plan(self) -> None:
        self._version += 1
        left = max(0.0, self._under_way[0][0] - self._served)
        wait = left * len(self._under_way) / self._rate
        self._clock.after(wait, self._end, self._version)

    def _end(self, version: int) -> None:
        if version != self._version or self.stopped:
            return
        self._advance(self._clock.now)
        _, began, transfer = self._under_way.popleft()
        if self._under_way:
            self._plan()
        self._on_sent(transfer, began)


class Downlink:
    """A host's receiving side: pieces that come faster than its rate wait for each other."""

    __slots__ = ("_busy_until", "_seconds")

    def __init__(self, rate: float, size: float) -> None:
        self._seconds = size / rate
        self._busy_until = 0.0

    def received(self, began: float, sent: float) -> float:
        """When a piece is whole whose first byte came at `began` and whose last was due at `sent`.

        Bytes are received while they are sent, so a piece on a free link is whole at `sent`.
        """
        self._busy_until = max(self._busy_until, began) + self._seconds
        return max(sent, self._busy_until)
