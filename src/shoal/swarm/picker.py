# SPDX-License-Identifier: Apache-2.0
"""Which piece of a blob to ask which peer for. Pure: the clock is a parameter.

The few pieces that a reader waits for next are asked for in order, of whoever has them; then come
those of a window behind its position (`window`), so that bytes can be passed on while the rest
arrives, and then the others. Several readers take turns, piece by piece; none is given more than it
reads to. In the window as outside it the rarest comes first, so that the swarm
keeps what it needs to go on without its seeds (Legout et al., "Rarest First and Choke Algorithms
Are Enough"); were it the lowest, all peers of a host with new pieces would ask it for the same one.
Pieces that are late are asked for a second time elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from operator import itemgetter

from shoal.swarm import bits as bitset
from shoal.swarm.window import BOUNDS, Window

PATIENCE = 0.25
"""Seconds after which a piece is late at the earliest."""

MAX_PATIENCE = 2.0
"""The same at the latest, unless pieces take a third of it anyhow: large ones on a slow link. Twice
what they took was too early: at 12.5 MB/s one piece in twenty came a second time."""

MAX_COPIES = 2
"""Peers that one piece is asked from at the same time."""

_URGENT = 0b1111
"""What a reader waits for: its next pieces, asked for in order of whoever has them first."""

_time = itemgetter(0)


@dataclass(slots=True)
class _Peer:
    bits: int
    seed: bool
    outside: bool = False
    """In another zone, and not a seed: asked for this host's share of the pieces."""
    asked: set[int] = field(default_factory=set)
    refused: int = 0
    """Pieces that it would not send, and has not shown since."""


@dataclass(slots=True)
class _Reader:
    position: int
    stop: int
    window: Window
    blocked_on: int = -1
    """The first piece that it misses."""
    since: float = 0.0
    as_of: int = -1
    """What was missing when `near` was worked out; no set is negative."""
    near: int = 0
    """The pieces of its window."""


class Picker:
    """The state of one download: missing pieces, who has which, and what was asked of whom."""

    def __init__(
        self,
        count: int,
        have: int,
        *,
        rng: random.Random,
        known: int | None = None,
        window: tuple[int, int] = BOUNDS,
    ) -> None:
        """`known`: pieces, from the first on, that can be checked when they come; others wait.

        `window`: pieces ahead of each reader, at least and at most.
        """
        self.count = count
        self.missing = bitset.full(count) & ~have
        self._window = window
        self._rng = rng
        self._peers: dict[str, _Peer] = {}
        self._readers: dict[Hashable, _Reader] = {}
        self._asked: dict[int, dict[str, float]] = {}
        self._known = count if known is None else known
        self._free = self.missing & bitset.full(self._known)
        """Missing, asked of nobody, and such that it can be checked."""
        self._share = 0
        self._latency = 0.0
        self._progress: float | None = None

    # -- who has what

    def set_share(self, share: tuple[int, int] | None) -> None:
        """What this host brings into its zone: from `share[0]` on every `share[1]`-th piece.

        None: nothing; others are its zone's relays.
        """
        places = () if share is None else range(share[0], self.count, share[1])
        self._share = sum(1 << index for index in places)

    def add_peer(self, peer: str, have: int, *, seed: bool, outside: bool = False) -> None:
        """A peer shows these pieces; a second call replaces what it showed before.

        `outside`: it is in another zone.
        """
        known = self._peers.get(peer)
        if known is None:
            known = self._peers[peer] = _Peer(0, seed)
        known.seed = seed
        known.outside = outside and not seed
        known.refused = 0
        known.bits = have

    def remove_peer(self, peer: str) -> None:
        """A peer is gone; what it was asked for can be asked of others."""
        known = self._peers.pop(peer, None)
        if known is None:
            return
        for index in known.asked:
            self._forget(peer, index)

    def knows(self, peer: str) -> bool:
        """Whether a peer takes part."""
        return peer in self._peers

    def peer_has(self, peer: str, index: int) -> bool:
        """A peer shows one more piece; whether it may be asked for it, as nobody else was."""
        known = self._peers[peer]
        bit = 1 << index
        if known.refused:
            known.refused &= ~bit
        known.bits |= bit
        return bool(self._free & bit)

    def learn(self, known: int) -> None:
        """More pieces can be checked."""
        self._free |= self.missing & bitset.full(known) & ~bitset.full(self._known)
        self._known = known

    # -- who reads where

    def set_reader(
        self, reader: Hashable, position: int, now: float, stop: int | None = None
    ) -> None:
        """A reader needs the piece at `position` next, and then those behind it up to `stop`.

        `stop`: the first piece that it needs no more; by default there is none.
        """
        known = self._readers.get(reader)
        end = self.count if stop is None else stop
        if known is None:
            self._readers[reader] = _Reader(position, end, Window(now, self._window))
            return
        known.stop = end
        if position >= known.position:
            known.window.taken(position - known.position, now, self._latency)
        known.position = position
        known.as_of = -1

    def remove_reader(self, reader: Hashable) -> None:
        """Nobody waits there any more."""
        self._readers.pop(reader, None)

    def urgency(self, index: int) -> int:
        """How many pieces the nearest reader still takes before this one; 0 is waited for."""
        ahead = [
            index - reader.position
            for reader in self._readers.values()
            if reader.position <= index < reader.stop
        ]
        return min(ahead, default=self.count)

    # -- what to ask for

    def promising(self, now: float, *, beyond: bool = True) -> list[str]:
        """The peers that `pick` may find something for; it finds nothing for the others."""
        narrow = self._readers and not beyond
        wanted = self._free & self._windows(now) if narrow else self._free
        patience = self.patience()
        for index, asked in self._asked.items():
            if now - next(iter(asked.values())) <= patience:
                break
            if len(asked) < MAX_COPIES:
                wanted |= 1 << index
        share = (wanted | self._free) & self._share
        return [
            peer
            for peer, known in self._peers.items()
            if known.bits & (share if known.outside else wanted) or known.seed
        ]

    def pick(self, peer: str, now: float, *, beyond: bool = True) -> int | None:
        """The piece to ask this peer for next, noted as asked; None when there is none.

        `beyond`: also pieces that are in no reader's window; without a reader, all may be.
        """
        known = self._peers[peer]
        candidates = known.bits & self._free
        if known.outside:
            candidates &= self._share
        index = None
        if candidates:
            # A relay's share waits for nothing: its whole zone does for it.
            wide = beyond or known.seed or known.outside
            index = self._choose(known, candidates, now, beyond=wide)
        if index is None:
            index = self._choose_late(peer, known, now)
        if index is None and not candidates and known.seed:
            index = self._choose_unshown(known, now)
        if index is not None:
            self._ask(peer, known, index, now)
        return index

    def _ask(self, peer: str, known: _Peer, index: int, now: float) -> None:
        known.asked.add(index)
        self._asked.setdefault(index, {})[peer] = now
        self._free &= ~(1 << index)

    def pick_for_reader(
        self, now: float, ease: Callable[[str], float | None]
    ) -> tuple[str, int] | None:
        """The next piece that a reader waits for and that somebody has, and whom to ask for it.

        `ease` says of a peer how long it would take; None when it must not be asked now.
        """
        for name, reader in self._readers.items():
            wanted = self._window_of(reader, now) & self._free
            wanted &= _URGENT << max(0, reader.blocked_on)
            if not wanted:
                continue
            offers: dict[str, int] = {}
            for peer, known in self._peers.items():
                offered = known.bits & wanted
                if known.outside:
                    offered &= self._share
                if offered:
                    offers[peer] = offered
            takes = {peer: ease(peer) for peer in offers}
            quick = [(time, peer) for peer, time in takes.items() if time is not None]
            while wanted and quick:
                bit = wanted & -wanted
                wanted ^= bit
                able = [it for it in quick if offers[it[1]] & bit]
                if able:
                    best = min(able, key=_time)[1]
                    index = bit.bit_length() - 1
                    self._ask(best, self._peers[best], index, now)
                    self._served(name)
                    return best, index
        return None

    def _served(self, reader: Hashable) -> None:
        """A piece was asked for on behalf of a reader: now it is the others' turn."""
        if len(self._readers) > 1:
            self._readers[reader] = self._readers.pop(reader)

    def _choose(self, known: _Peer, candidates: int, now: float, *, beyond: bool) -> int | None:
        for name, reader in self._readers.items():
            window = candidates & self._window_of(reader, now)
            if window:
                candidates = window
                self._served(name)
                break
        else:
            if self._readers and not beyond:
                return None
        if known.seed:
            # What it shows is nowhere else yet: it all is equally rare, and was shown in order.
            return bitset.lowest(candidates)
        return bitset.any_of(self._rarest(candidates), self._rng)

    def _rarest(self, candidates: int) -> int:
        """Those of the pieces that the fewest peers show.

        The peers are counted for all pieces at once: the n-th of the planes holds bit n of each
        piece's number.
        """
        if not candidates & (candidates - 1):
            return candidates
        planes: list[int] = []
        for known in self._peers.values():
            carry = known.bits & candidates
            if carry == candidates:
                continue  # It makes no difference between them.
            for place, plane in enumerate(planes):
                if not carry:
                    break
                planes[place] = plane ^ carry
                carry &= plane
            if carry:
                planes.append(carry)
        for plane in reversed(planes):
            candidates = candidates & ~plane or candidates
        return candidates

    def is_near(self, index: int, now: float) -> bool:
        """Whether a reader has the piece in its window."""
        return bool(self._windows(now) >> index & 1)

    def _windows(self, now: float) -> int:
        near = 0
        for reader in self._readers.values():
            near |= self._window_of(reader, now)
        return near

    def _window_of(self, reader: _Reader, now: float) -> int:
        if reader.as_of == self.missing:
            return reader.near
        reader.as_of = self.missing
        ahead = (self.missing & bitset.full(reader.stop)) >> reader.position
        if not ahead:
            reader.near, reader.blocked_on = 0, -1
            return 0
        first = reader.position + bitset.lowest(ahead)
        if first != reader.blocked_on:
            reader.blocked_on, reader.since = first, now
        reader.near = bitset.full(min(reader.window.size, reader.stop - first)) << first
        return reader.near

    def _choose_late(self, peer: str, known: _Peer, now: float) -> int | None:
        patience = self.patience()
        unshown = known.seed and not known.asked
        # They stand in the order in which they were first asked for: the first one is the latest.
        for index, asked in self._asked.items():
            age = now - next(iter(asked.values()))
            if age <= patience:
                break
            if len(asked) >= MAX_COPIES or peer in asked:
                continue
            if known.bits >> index & 1:
                bearable = patience
            elif unshown and not known.refused >> index & 1:
                bearable = max(patience, MAX_PATIENCE)
            else:
                continue
            if age > bearable and all(self.is_asked(it, index) for it in asked):
                return index
        return None

    def _choose_unshown(self, known: _Peer, now: float) -> int | None:
        """What a seed has and does not show is expected from others; ask for it when it is late."""
        patience = self.patience()
        free = self._free & ~known.refused
        if not free or known.asked:
            return None
        if self._progress is None:
            self._progress = now
        for reader in self._readers.values():
            self._window_of(reader, now)
            if (
                reader.blocked_on >= 0
                and free >> reader.blocked_on & 1
                and now - reader.since > patience
            ):
                return reader.blocked_on
        if not self._asked and now - self._progress > patience:
            return bitset.lowest(free)
        return None

    def patience(self) -> float:
        """Seconds after which a piece is late: a few times what pieces took so far."""
        most = max(MAX_PATIENCE, 3 * self._latency)
        return min(most, max(PATIENCE, 4 * self._latency))

    # -- what became of it

    def asked_of(self, peer: str) -> frozenset[int]:
        """The pieces asked of a peer and not yet come."""
        known = self._peers.get(peer)
        return frozenset(known.asked) if known else frozenset()

    def is_asked(self, peer: str, index: int) -> bool:
        """Whether this peer was asked for this piece."""
        known = self._peers.get(peer)
        return known is not None and index in known.asked

    def arrived(self, peer: str, index: int, now: float) -> float:
        """The bytes of a piece are here; returns the seconds since it was asked for.

        Nobody else is asked for it while it is being checked; then call `verified` or `failed`.
        """
        took = now - self._asked[index][peer]
        self._peers[peer].asked.discard(index)
        self._latency += (took - self._latency) / 8
        self._progress = now
        return took

    def verified(self, index: int) -> list[str]:
        """A piece is checked and written; returns the other peers that it is still due from."""
        self.missing &= ~(1 << index)
        self._free &= self.missing
        others = [peer for peer in self._asked.pop(index, {}) if self.is_asked(peer, index)]
        for peer in others:
            self._peers[peer].asked.discard(index)
        return others

    def failed(self, peer: str, index: int) -> None:
        """A piece did not come, or was wrong: it can be asked for again."""
        known = self._peers.get(peer)
        if known is not None:
            known.asked.discard(index)
        self._forget(peer, index)

    def rejected(self, peer: str, index: int) -> None:
        """A peer will not send a piece: it no longer counts as having it."""
        self.failed(peer, index)
        known = self._peers.get(peer)
        if known is None:
            return
        known.refused |= 1 << index
        known.bits &= ~(1 << index)

    def _forget(self, peer: str, index: int) -> None:
        asked = self._asked.get(index)
        if asked is None or asked.pop(peer, None) is None:
            return
        # Whoever else it was asked of was asked later: it goes behind those of that time.
        del self._asked[index]
        if asked:
            self._asked[index] = asked
        else:
            self._free |= self.missing & (1 << index)
