# SPDX-License-Identifier: Apache-2.0
"""Peers that are kept away, longer each time. Pure: the clock is a parameter.

A peer chooses its id and says itself where it listens, so neither tells it from another one. What
it cannot choose is where it was when this host dialed it, and the address that it comes from. So
whom to dial and whom to let in are two questions:

* Who was dialed is kept away by its place (`host:port`, both as it was named and the address that
  was reached): it is not dialed there again, whatever id the tracker gives, and nobody is let in
  who says that it listens there.
* Who came by itself is kept away by its address and the place that it said, and only from coming:
  it may have said the place of an honest peer, which goes on being dialed. The honest peers that
  share its address (several on one host, or behind one translated address) go on coming until
  there was grave harm from several places of that address; then none is let in from there.
"""

from __future__ import annotations

import ipaddress

_FIRST = 30.0
_LONGEST = 3600.0
_MOST = 10_000
"""Peers remembered; an enemy that comes with a new name each time must not fill the memory."""

BORNE = 3
"""Peers of one address that may do grave harm before the address itself is kept away."""


class Bans:
    """Who is kept away until when, by any name."""

    def __init__(self, *, borne: int = 0) -> None:
        """`borne`: strikes that are noted, but do not keep away yet."""
        self._borne = borne
        self._until: dict[str, tuple[float, int]] = {}

    def add(self, peer: str, now: float) -> int:
        """Keep a peer away; returns how often that has happened."""
        _, strikes = self._until.pop(peer, (0.0, 0))
        if len(self._until) >= _MOST:
            del self._until[next(iter(self._until))]
        late = strikes - self._borne
        away = min(_LONGEST, _FIRST * 2.0**late) if late >= 0 else 0.0
        self._until[peer] = (now + away, strikes + 1)
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


class KeptAway:
    """Whom this host does not dial, and whom it does not let in."""

    def __init__(self) -> None:
        self._places = Bans()
        self._comers = Bans()
        self._addresses = Bans(borne=BORNE)

    def was_dialed(self, place: str, now: float) -> int:
        """Who was dialed at a place did harm; returns how often that has happened there."""
        return self._places.add(place, now)

    def came(self, address: str, place: str, now: float, *, grave: bool) -> int:
        """Who came from an address and said that it listens at a place did harm.

        `grave`: no honest peer does that. Returns how often it happened.
        """
        origin = _same(address)
        if grave:
            self._addresses.add(origin, now)
        return self._comers.add(_comer(origin, place), now)

    def may_be_dialed(self, place: str, now: float) -> bool:
        """Whether to dial a place."""
        return not self._places.holds(place, now)

    def may_come(self, address: str, now: float) -> bool:
        """Whether to accept a connection from an address."""
        return not self._addresses.holds(_same(address), now)

    def may_stay(self, address: str, place: str, now: float) -> bool:
        """Whether to keep a connection that was accepted, of a peer that says this place."""
        return not (
            self._places.holds(place, now) or self._comers.holds(_comer(_same(address), place), now)
        )

    def current(self, now: float) -> dict[str, float]:
        """Who is kept away, and for how many seconds more: places, comers and addresses."""
        return {
            name: left
            for bans in (self._places, self._comers, self._addresses)
            for name, left in bans.current(now).items()
        }

    def forgive(self, now: float) -> None:
        """Forget those that have not been seen to do harm for long."""
        for bans in (self._places, self._comers, self._addresses):
            bans.forgive(now)


def _comer(origin: str, place: str) -> str:
    return f"{place} from {origin}"


def _same(address: str) -> str:
    """An address as it is noted: IPv4 in IPv6, as a listener on `::` sees it, is IPv4."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str((isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped) or ip)
