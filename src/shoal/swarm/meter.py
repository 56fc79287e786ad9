# SPDX-License-Identifier: Apache-2.0
"""A rate as of now, from what came in the last seconds. Pure: the clock is a parameter."""

from __future__ import annotations

import math

_MEMORY = 3.0
"""Seconds after which what came counts for a third."""


class Meter:
    """Bytes per second, smoothed."""

    def __init__(self) -> None:
        self.total = 0
        self._rate = 0.0
        self._at = 0.0

    def add(self, count: int, now: float) -> None:
        """So many bytes went."""
        self.total += count
        self._rate = self.rate(now) + count / _MEMORY
        self._at = now

    def rate(self, now: float) -> float:
        """Bytes per second."""
        return self._rate * math.exp((self._at - now) / _MEMORY)
