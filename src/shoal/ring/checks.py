# SPDX-License-Identifier: Apache-2.0
"""Active health: which hosts are due for a check, and what their checks have come to. Pure.

A host changes its state only by checks in a row, so that one lost packet moves nothing. A new host
counts as healthy, and so does one that has no other beside it: there is nobody to prefer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

JITTER = 0.2
"""Share of the interval by which checks are spread, so that many checkers fall out of step."""


@dataclass(slots=True)
class _State:
    due: float
    healthy: bool = True
    against: int = 0
    """Checks in a row that spoke against the present state."""


class Checks:
    """The state of a changing set of hosts. Times are in seconds of one monotonic clock."""

    def __init__(self, *, interval: float, fails: int, passes: int, rng: random.Random) -> None:
        """`fails` and `passes`: the checks in a row after which a host changes its state."""
        self._interval = interval
        self._fails = fails
        self._passes = passes
        self._rng = rng
        self._states: dict[str, _State] = {}

    def follow(self, hosts: Iterable[str], now: float) -> None:
        """These are the hosts from now on; the first checks of new ones are spread as well."""
        before, self._states = self._states, {}
        for host in hosts:
            first = now + self._rng.random() * self._interval
            self._states[host] = before.get(host) or _State(first)

    def due(self, now: float) -> list[str]:
        """The hosts to be checked now; each is due again after the interval, whatever comes."""
        hosts = [host for host, state in self._states.items() if state.due <= now]
        for host in hosts:
            spread = self._rng.uniform(1.0 - JITTER, 1.0 + JITTER)
            self._states[host].due = now + self._interval * spread
        return hosts

    def next_due(self) -> float | None:
        """When the next host is due; None: there is none."""
        return min((state.due for state in self._states.values()), default=None)

    def suspect(self, host: str, now: float) -> None:
        """A call to the host failed: it is due at once, unless it is known to be unhealthy."""
        state = self._states.get(host)
        if state is not None and state.healthy and not state.against:
            state.due = min(state.due, now)

    def passed(self, host: str) -> bool:
        """A check was passed; whether the host's state changed by it."""
        return self._note(host, healthy=True, needed=self._passes)

    def failed(self, host: str) -> bool:
        """A check failed; whether the host's state changed by it."""
        return self._note(host, healthy=False, needed=self._fails)

    def healthy(self, host: str) -> bool:
        """Whether the host counts as healthy; so does whoever is not known, or alone."""
        state = self._states.get(host)
        return state is None or state.healthy or len(self._states) == 1

    def _note(self, host: str, *, healthy: bool, needed: int) -> bool:
        state = self._states.get(host)
        if state is None:
            return False
        if state.healthy == healthy:
            state.against = 0
            return False
        state.against += 1
        if state.against < needed:
            return False
        state.healthy = healthy
        state.against = 0
        return True
