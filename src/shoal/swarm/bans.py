# SPDX-License-Identifier: Apache-2.0
"""Peers that are kept away, longer each time. Pure: the clock is a parameter."""

from __future__ import annotations

_FIRST = 30.0
_LONGEST = 3600.0
_MOST = 10_000
"""Peers remembered; an enemy that comes with a new name each time must not fill the memory."""


class Bans:
    """Who is kept away until when."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, int]] = {}

    def add(self, peer: str, now: float) -> int:
        """Keep a peer away; returns how often that has happened."""
        _, strikes = self._until.pop(peer, (0.0, 0))
        if len(self._until) >= _MOST:
            del self._until[next(iter(self._until))]
        self._until[peer] = (now + min(_LONGEST, _FIRST * 2**strikes), strikes + 1)
        return strikes + 1

    def holds(self, peer: str, now: float) -> bool:
        """Whether a peer is kept away."""
        ban = self._until.get(peer)
        return ban is not None and now < ban[0]

    def current(self, now: float) -> dict[str, float]:
        """The peers that are kept away, and for how many seconds more."""
        return {peer: until - now for peer, (until, _) in self._until.items() if until > now}

    def forgive(self, now: float) -> None:
        """Forget those that have not been seen to do harm for long."""
        self._until = {peer: ban for peer, ban in self._until.items() if ban[0] + _LONGEST > now}
