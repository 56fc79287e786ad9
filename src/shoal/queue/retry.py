# SPDX-License-Identifier: Apache-2.0
"""When to try again. Pure: the caller keeps the time, and decides what is worth another try.

The defaults make four attempts, at 0, +0.5, +1 and +2 seconds: 3.5 seconds of waiting in all.
"""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from shoal.config.model import Config
from shoal.config.units import Duration

LONGEST_AFTER = 3600.0
"""Most seconds for which another side's wish to be left alone is respected."""


class Backoff(Config):
    """How long the waits between attempts are.

    The n-th wait is ``initial * factor ** (n - 1)`` seconds, at most `cap`, give or take `jitter`.
    """

    initial: Annotated[Duration, Field(ge=0, le=86_400)] = 0.5
    """The first wait."""

    factor: Annotated[float, Field(ge=1, le=100)] = 2.0
    """How much longer each wait is than the one before."""

    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """The share of a wait by which it is longer or shorter, so that callers spread."""

    cap: Annotated[Duration, Field(ge=0, le=86_400)] = 30.0
    """No wait is longer, but for jitter and a longer one that the other side asks for."""

    def wait(self, failures: int, rng: random.Random, after: float | None = None) -> float:
        """Seconds to wait after this many failures (1 or more) before the next attempt.

        `after` is what the other side asked for (Retry-After): the wait is then no shorter.
        """
        wait = self._middle(failures) * (1 + rng.uniform(-self.jitter, self.jitter))
        return wait if after is None else max(wait, min(after, LONGEST_AFTER))

    def _middle(self, failures: int) -> float:
        try:
            return min(self.initial * self.factor ** (failures - 1), self.cap)
        except OverflowError:
            return self.cap if self.initial else 0.0


class RetryPolicy(Backoff):
    """How often something is tried, and how long the waits between the attempts are."""

    attempts: Annotated[int, Field(ge=1, le=10_000)] = 4
    """Attempts in all, the first included; 1 never tries again."""

    def longest(self) -> float:
        """Seconds that all waits together take at most, when nobody asks for more."""
        waits = sum(self._middle(failures) for failures in range(1, self.attempts))
        return waits * (1 + self.jitter)
