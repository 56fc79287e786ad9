# SPDX-License-Identifier: Apache-2.0
"""Passive health: what calls to a host have lately come to.

It orders hosts and never drops one: a host that failed is asked last, and still asked before anyone
says "not there".
"""

from __future__ import annotations

import math
from collections.abc import Iterable

REMEMBERED = 30.0
"""Seconds for which a failure puts a host behind the others."""


class Health:
    """The recent failures of hosts. Times are in seconds of one monotonic clock."""

    def __init__(self, remembered: float = REMEMBERED) -> None:
        self._remembered = remembered
        self._failed_at: dict[str, float] = {}

    def failed(self, host: str, now: float) -> None:
        """A call could not be made, or the host could not answer it."""
        self._failed_at[host] = now

    def ok(self, host: str, now: float) -> None:
        """The host answered, whatever it said. A failure that is older than this is forgotten."""
        if self._failed_at.get(host, math.inf) <= now:
            del self._failed_at[host]

    def order(self, hosts: Iterable[str], now: float) -> list[str]:
        """The hosts as given, but those that failed recently last, the latest at the very end."""
        return sorted(hosts, key=lambda host: self._penalty(host, now))

    def _penalty(self, host: str, now: float) -> float:
        failed_at = self._failed_at.get(host)
        if failed_at is None or now - failed_at >= self._remembered:
            return -math.inf
        return failed_at
