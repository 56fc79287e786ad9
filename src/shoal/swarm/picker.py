# SPDX-License-Identifier: Apache-2.0
"""Which piece of a blob to ask which peer for. Pure: the clock is a parameter.

The few pieces that a reader waits for next are asked for in order, of whoever has them; then come
those of a window behind its position, so that bytes can be passed on while the rest arrives, and
then the others. In the window as outside it the rarest comes first, so that the swarm keeps what it
needs to go on without its seeds (Legout et al., "Rarest First and Choke Algorithms Are Enough");
were it the lowest, all peers of a host with new pieces would ask it for the same one. Pieces that
are late are asked for a second time elsewhere.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from shoal.swarm import bits as bitset

PATIENCE = 0.25
"""Seconds after which a piece is late at the earliest."""

MAX_PATIENCE = 2.0
MAX_COPIES = 2
"""Peers that one piece is asked from at the same time."""

_URGENT = 0b1111
"""What a reader waits for: its next pieces, asked for in order of whoever has them first."""


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
    blocked_on: int = -1
    since: float = 0.0


class Picker:
    """The state of one download: missing pieces, who has which, and what was asked of whom."""

    def __init__(self, count: int, have: int, *, rng: random.Random, window: int = 32) -> None:
        self.count = count
        self.missing = bitset.full(count) & ~have
        self._window = window
        self._rng = rng
        self._peers: dict[str, _Peer] = {}
        self._readers: dict[Hashable, _Reader] = {}
        self._asked: dict[int, dict[str, float]] = {}
        self._asked_bits = 0
        # How many peers show each missing piece, and for each number the missing pieces with it.
        self._holders = array("H", bytes(2 * count))
        self._levels = [bitset.full(count)]
        self._share = 0
        self._latency = 0.0
        self._progress: float | None = None

    # -- who has what

    def set_share(self, place: int, places: int) -> None:
        """This host is a relay of its zone: it brings in every `places`-th piece from outside."""
        self._share = sum(1 << index for index in range(place, self.count, places))

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
        for index in bitset.indices(known.bits & ~have & self.missing):
            self._count_holder(index, -1)
        for index in bitset.indices(have & ~known.bits & self.missing):
            self._count_holder(index, +1)
        known.bits = have

    def remove_peer(self, peer: str) -> None:
        """A peer is gone; what it was asked for can be asked of others."""
        known = self._peers.pop(peer, None)
        if known is None:
            return
        for index in bitset.indices(known.bits & self.missing):
            self._count_holder(index, -1)
        for index in known.asked:
            self._forget(peer, index)

    def knows(self, peer: str) -> bool:
        """Whether a peer takes part."""
        return peer in self._peers

    def peer_has(self, peer: str, index: int) -> None:
        """A peer shows one more piece."""
        known = self._peers[peer]
        bit = 1 << index
        if known.refused:
            known.refused &= ~bit
        if not known.bits & bit:
            known.bits |= bit
            if self.missing & bit:
                self._count_holder(index, +1)

    def _count_holder(self, index: int, change: int) -> None:
        level = self._holders[index]
        self._holders[index] = level + change
        bit = 1 << index
        self._levels[level] ^= bit
        level += change
        if level == len(self._levels):
            self._levels.append(bit)
        else:
            self._levels[level] |= bit

    # -- who reads where

    def set_reader(self, reader: Hashable, position: int) -> None:
        """A reader needs the piece at `position` next, and then those behind it."""
        known = self._readers.get(reader)
        if known is None:
            self._readers[reader] = _Reader(position)
        else:
            known.position = position

    def remove_reader(self, reader: Hashable) -> None:
        """Nobody waits there any more."""
        self._readers.pop(reader, None)

    def urgency(self, index: int) -> int:
        """How many pieces the nearest reader still takes before this one; 0 is waited for."""
        ahead = [index - reader.position for reader in self._readers.values()]
        return min((distance for distance in ahead if distance >= 0), default=self.count)

    # -- what to ask for

    def pick(self, peer: str, now: float) -> int | None:
        """The piece to ask this peer for next, noted as asked; None when there is none."""
        known = self._peers[peer]
        index = self._choose(known, now)
        if index is None:
            index = self._choose_late(peer, known, now)
        if index is None and known.seed:
            index = self._choose_unshown(known, now)
        if index is not None:
            self._ask(peer, known, index, now)
        return index

    def _ask(self, peer: str, known: _Peer, index: int, now: float) -> None:
        known.asked.add(index)
        self._asked.setdefault(index, {})[peer] = now
        self._asked_bits |= 1 << index

    def pick_for_reader(
        self, now: float, ease: Callable[[str], float | None]
    ) -> tuple[str, int] | None:
        """The next piece that a reader waits for and that somebody has, and whom to ask for it.

        `ease` says of a peer how long it would take; None when it must not be asked now.
        """
        for reader in self._readers.values():
            wanted = self._window_of(reader, now) & self.missing & ~self._asked_bits
            wanted &= ~self._levels[0] & (_URGENT << reader.blocked_on)
            while wanted:
                bit = wanted & -wanted
                wanted ^= bit
                best, least = None, float("inf")
                for peer, known in self._peers.items():
                    if known.bits & bit and (not known.outside or self._share & bit):
                        takes = ease(peer)
                        if takes is not None and takes < least:
                            best, least = peer, takes
                if best is not None:
                    index = bit.bit_length() - 1
                    self._ask(best, self._peers[best], index, now)
                    return best, index
        return None

    def _choose(self, known: _Peer, now: float) -> int | None:
        candidates = known.bits & self.missing & ~self._asked_bits
        if known.outside:
            candidates &= self._share
        if not candidates:
            return None
        for reader in self._readers.values():
            window = candidates & self._window_of(reader, now)
            if window:
                candidates = window
                break
        if known.seed:
            # What it shows is nowhere else yet: it all is equally rare, and was shown in order.
            return bitset.lowest(candidates)
        for level in self._levels:
            rarest = candidates & level
            if rarest:
                return bitset.any_of(rarest, self._rng)
        return None

    def _window_of(self, reader: _Reader, now: float) -> int:
        ahead = self.missing >> reader.position
        if not ahead:
            return 0
        first = reader.position + bitset.lowest(ahead)
        if first != reader.blocked_on:
            reader.blocked_on, reader.since = first, now
        return bitset.full(self._window) << first

    def _choose_late(self, peer: str, known: _Peer, now: float) -> int | None:
        patience = self.patience()
        unshown = known.seed and not known.asked
        # They stand in the order in which they were first asked for: the first one is the latest.
        for index, asked in self._asked.items():
            age = now - next(iter(asked.values()))
            if age <= patience or len(asked) >= MAX_COPIES or peer in asked:
                continue
            if known.bits >> index & 1:
                bearable = patience
            elif unshown and not known.refused >> index & 1:
                bearable = MAX_PATIENCE
            else:
                continue
            if age > bearable and all(self.is_asked(it, index) for it in asked):
                return index
        return None

    def _choose_unshown(self, known: _Peer, now: float) -> int | None:
        """What a seed has and does not show is expected from others; ask for it when it is late."""
        patience = self.patience()
        free = self.missing & ~self._asked_bits & ~known.refused
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
        return min(MAX_PATIENCE, max(PATIENCE, 4 * self._latency))

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
        self._asked_bits &= ~(1 << index)
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
        if known.bits >> index & 1:
            known.bits &= ~(1 << index)
            if self.missing >> index & 1:
                self._count_holder(index, -1)

    def _forget(self, peer: str, index: int) -> None:
        asked = self._asked.get(index)
        if asked is None:
            return
        asked.pop(peer, None)
        if not asked:
            del self._asked[index]
            self._asked_bits &= ~(1 << index)
