# SPDX-License-Identifier: Apache-2.0
"""Finds the peer that sends, but next to nothing. Pure: the clock is a parameter.

Silence is easy to see. A peer that sends a byte now and then is never silent, and a piece that it
has begun would never end.
"""

from __future__ import annotations

FLOOR = 32 * 1024
"""Bytes per second below which a peer is of no use."""

NOTICED = 1.0
"""Seconds below it after which its pieces are asked for elsewhere."""


class Trickle:
    """Watches one connection while pieces are due over it."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds below the floor that are borne before it is given up."""
        self._patience = patience
        self._bytes = 0
        self._since: float | None = None
        self._noticed = False

    def came(self, count: int) -> None:
        """Bytes of a piece came."""
        self._bytes += count

    def rest(self) -> None:
        """Nothing is due, or this side takes nothing: what did not come is nobody's fault."""
        self._bytes = 0
        self._since = None
        self._noticed = False

    def noticed(self, now: float) -> bool:
        """Whether it has begun to trickle: true once for each time that it does."""
        if self._noticed or not self._below(now, NOTICED):
            return False
        self._noticed = True
        return True

    def hopeless(self, now: float) -> bool:
        """Whether it has trickled for as long as is borne."""
        return self._below(now, self._patience)

    def _below(self, now: float, seconds: float) -> bool:
        if self._since is None:
            self._since = now
        elapsed = now - self._since
        if self._bytes and self._bytes >= FLOOR * max(elapsed, NOTICED):
            # It flows: from now on anew, so that a quick start does not excuse what follows.
            self._bytes = 0
            self._since = now
            self._noticed = False
            return False
        return elapsed >= seconds and self._bytes > 0
