# SPDX-License-Identifier: Apache-2.0
"""Which peers a leecher is told of. Pure.

An answer holds one origin whenever there is one (agents that have the whole blob may be gone
without a word), then up to half of the room in agents that have the whole blob, then leechers: many
come at the same time, and they must know each other or all of them hang on the few that are
complete. Free room is filled with what is left.

Where hosts have zones, they are told of their own zone's, and a few of each zone, its *relays*, of
others' beside them. Each relay brings in a share of the pieces, so that a piece crosses into the
zone about once; from there it spreads inside.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from shoal.swarm.peers import PeerInfo

RELAYS = 16
"""Hosts of a zone that bring pieces in. Each has its share; each sends to a whole zone's hosts what
nobody else there has, and so a few are not enough."""

_OUTSIDE = 2
"""Relays of each other zone that a relay is told of."""

_EVERYTHING = 0, 1
"""The share of who need not keep to its zone."""

_FAR_ORIGINS = 2
"""Origins of other zones that a relay is told of."""

_FELLOWS = 2
"""Relays of its own zone that a relay is told of; more would take the places of those outside."""


def choose(
    me: str,
    *,
    origins: Sequence[PeerInfo],
    seeds: Sequence[PeerInfo],
    leechers: Sequence[PeerInfo],
    limit: int,
) -> list[PeerInfo]:
    """Up to `limit` (at least 1) peers for the leecher with the id `me`: each once, never itself.

    The candidates come in random order, as chance decides among equals.
    """
    others = [origin for origin in origins if origin.id != me]
    complete = [seed for seed in seeds if seed.id != me]
    first = others[:1]
    early_seeds = max(1, limit // 2) - len(first)
    wanted = chain(first, complete[:early_seeds], leechers, complete[early_seeds:], others[1:])
    chosen: list[PeerInfo] = []
    named = {me}
    for peer in wanted:
        if peer.id not in named:
            named.add(peer.id)
            chosen.append(peer)
            if len(chosen) == limit:
                break
    return chosen


class Handout(NamedTuple):
    """What a leecher is told."""

    peers: list[PeerInfo]
    share: tuple[int, int] | None
    """For a relay its place among the relays of its zone, and the number of places; for who is
    starved (0, 1), all of it."""


class _Entry:
    __slots__ = ("peer", "told")

    def __init__(self, peer: PeerInfo) -> None:
        self.peer = peer
        self.told = 0
        """How often it was handed out."""


_told = attrgetter("told")


class Pool:
    """Peers from which some are drawn at random, in time independent of their number."""

    __slots__ = ("_entries", "_places")

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, peer: PeerInfo) -> None:
        """Add a peer, or replace what was known of it."""
        place = self._places.get(peer.id)
        if place is None:
            self._places[peer.id] = len(self._entries)
            self._entries.append(_Entry(peer))
        else:
            self._entries[place].peer = peer

    def discard(self, peer_id: str) -> None:
        """Remove a peer, if it is there."""
        place = self._places.pop(peer_id, None)
        if place is None:
            return
        last = self._entries.pop()
        if last.peer.id != peer_id:
            self._entries[place] = last
            self._places[last.peer.id] = place

    def draw(self, count: int, rng: random.Random) -> list[_Entry]:
        """Up to `count` different peers: of twice as many those that were handed out least.

        So all get about as many connections, whether they came first or last (the power of two
        choices, Mitzenmacher 2001): who has many is asked by many, and answers each late.
        """
        entries, wanted = self._entries, 2 * count
        if not entries:
            return []
        # Of many, few are drawn twice; to rule it out costs three times as much.
        drawn = dict.fromkeys(rng.choices(entries, k=wanted)) if len(entries) > 2 * wanted else ()
        if len(drawn) < count:
            drawn = dict.fromkeys(rng.sample(entries, min(wanted, len(entries))))
        return sorted(drawn, key=_told)[:count]

    def all(self) -> list[PeerInfo]:
        """Every peer."""
        return [entry.peer for entry in self._entries]


def _note(drawn: Iterable[_Entry], handed_out: Iterable[PeerInfo]) -> None:
    """Count what was handed out of what was drawn."""
    ids = {peer.id for peer in handed_out}
    for entry in drawn:
        if entry.peer.id in ids:
            entry.told += 1


class _Zone:
    __slots__ = ("leechers", "places", "relays", "seeds")

    def __init__(self) -> None:
        self.seeds = Pool()
        self.leechers = Pool()
        self.relays: list[PeerInfo | None] = [None] * RELAYS
        self.places: dict[str, int] = {}
        """Of each relay, by its id."""

    def fill_place(self, leecher: PeerInfo) -> None:
        """Make a leecher a relay if there are too few."""
        if len(self.places) < RELAYS and leecher.id not in self.places:
            place = self.places[leecher.id] = self.relays.index(None)
            self.relays[place] = leecher


class Roster:
    """The peers of one blob, by zone."""

    __slots__ = ("_zones",)

    def __init__(self) -> None:
        self._zones: dict[str, _Zone] = {}

    def put(self, peer: PeerInfo, *, complete: bool) -> None:
        """A peer has the blob, or fetches it."""
        zone = self._zones.get(peer.zone)
        if zone is None:
            zone = self._zones[peer.zone] = _Zone()
        (zone.leechers if complete else zone.seeds).discard(peer.id)
        (zone.seeds if complete else zone.leechers).put(peer)
        if not complete:
            zone.fill_place(peer)

    def keep(self, leecher: PeerInfo) -> None:
        """A leecher that was put in as it is now still fetches the blob."""
        self._zones[leecher.zone].fill_place(leecher)

    def remove(self, peer: PeerInfo) -> None:
        """A peer is gone. Its place as a relay goes to the next leecher that announces itself."""
        zone = self._zones.get(peer.zone)
        if zone is None:
            return
        zone.seeds.discard(peer.id)
        zone.leechers.discard(peer.id)
        place = zone.places.pop(peer.id, None)
        if place is not None:
            zone.relays[place] = None
        if not zone.seeds and not zone.leechers:
            del self._zones[peer.zone]

    def hand_out(
        self,
        me: PeerInfo,
        *,
        origins: Sequence[PeerInfo] = (),
        limit: int,
        rng: random.Random,
        starved: bool = False,
    ) -> Handout:
        """Peers for a leecher that was put in: up to `limit`, a relay somewhat more.

        `starved`: it gets nothing from those that it has. Who waits in vain for what its zone's
        relays bring may take everything from anywhere, until it announces itself without.
        """
        zone = self._zones[me.zone]
        shuffled = sorted(origins, key=lambda _: rng.random())  # A third of what `sample` costs.
        drawn_seeds = zone.seeds.draw(limit + 1, rng)
        drawn_leechers = zone.leechers.draw(limit + 1, rng)
        seeds = [entry.peer for entry in drawn_seeds]
        leechers = [entry.peer for entry in drawn_leechers]
        one_zone = not me.zone or all(origin.zone == me.zone for origin in origins)
        if one_zone and len(self._zones) == 1:
            peers = choose(me.id, origins=shuffled, seeds=seeds, leechers=leechers, limit=limit)
            _note(chain(drawn_seeds, drawn_leechers), peers)
            return Handout(peers, _EVERYTHING if starved else None)
        near = [origin for origin in shuffled if origin.zone == me.zone]
        far = [origin for origin in shuffled if origin.zone != me.zone]
        others = [it for name, it in self._zones.items() if name != me.zone]
        place = zone.places.get(me.id)
        outside: list[PeerInfo] = []
        if place is not None:
            fellows = [relay for relay in zone.relays if relay is not None and relay.id != me.id]
            outside = far[:_FAR_ORIGINS] + _relays(others, rng)
            outside += rng.sample(fellows, min(_FELLOWS, len(fellows)))
        if starved:
            outside += far + [entry.peer for it in others for entry in it.seeds.draw(1, rng)]
        inside = choose(me.id, origins=near, seeds=seeds, leechers=leechers, limit=limit)
        _note(chain(drawn_seeds, drawn_leechers), inside)
        unique = {peer.id: peer for peer in chain(outside, inside)}
        share = None if place is None else (place, RELAYS)
        return Handout(list(unique.values()) or far[:1], _EVERYTHING if starved else share)

    def peers(self) -> tuple[list[PeerInfo], list[PeerInfo]]:
        """All that have the blob, and all that fetch it."""
        zones = self._zones.values()
        return (
            [peer for zone in zones for peer in zone.seeds.all()],
            [peer for zone in zones for peer in zone.leechers.all()],
        )

    def __len__(self) -> int:
        return sum(len(zone.seeds) + len(zone.leechers) for zone in self._zones.values())


def _relays(zones: Iterable[_Zone], rng: random.Random) -> list[PeerInfo]:
    found: list[PeerInfo] = []
    for zone in zones:
        relays = [relay for relay in zone.relays if relay is not None]
        found += rng.sample(relays, min(_OUTSIDE, len(relays)))
    return found
