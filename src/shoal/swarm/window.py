# SPDX-License-Identifier: Apache-2.0
"""How far ahead of a reader pieces are fetched before all others. Pure: the clock is a parameter.

A piece must be asked for as long before its reader comes to it as it takes to get here; farther
ahead, a rare piece is worth more to the swarm than one that is next. So the window is what the
reader takes during a piece's way through the swarm: its bandwidth-delay product. A reader that is
quick, or waits for every piece, has a wide window, one that takes its time a narrow one.
"""

from __future__ import annotations

import math

BOUNDS = (16, 64)
"""Pieces, at least and at most."""

_AT_FIRST = 32
"""Before a reader's rate is known."""

_HOPS = 4
"""Hosts that a piece passes on its way here: each gets it about as quickly as this one does."""

_SPAN = 0.25
"""Seconds over which a reader's rate is measured."""


class Window:
    """The window of one reader, in pieces."""

    __slots__ = ("_least", "_most", "_rate", "_since", "_taken", "size")

    def __init__(self, now: float, bounds: tuple[int, int] = BOUNDS) -> None:
        """`bounds`: pieces, at least and at most."""
        self._least, self._most = bounds
        self.size = self._within(_AT_FIRST)
        self._since = now
        self._taken = 0
        self._rate: float | None = None
        """Pieces/s, smoothed."""

    def taken(self, pieces: int, now: float, latency: float) -> None:
        """The reader took pieces; one takes `latency` seconds from when a peer is asked for it."""
        self._taken += pieces
        elapsed = now - self._since
        if elapsed < _SPAN:
            return
        rate = self._taken / elapsed
        self._rate = rate if self._rate is None else (self._rate + rate) / 2
        self._taken, self._since = 0, now
        self.size = self._within(math.ceil(_HOPS * self._rate * latency))

    def _within(self, size: int) -> int:
        return max(self._least, min(self._most, size))
