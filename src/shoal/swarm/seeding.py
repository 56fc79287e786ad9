# SPDX-License-Identifier: Apache-2.0
"""Which pieces a seed shows to which leecher, so that each is spread once before any twice.

In the spirit of BEP 16 (superseeding), but in order, as readers stream. Several seeds of one blob
share the work by residue: seed `rank` of `seeds` begins with pieces i where i % seeds == rank, and
takes over others' from the far end when its own are spread. What a leecher cannot get elsewhere it
asks for unshown, which earns it more. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.swarm import bits as bitset

_TAKE_OVER = 1
"""Pieces of other seeds' share that a leecher is shown at a time."""


@dataclass(slots=True)
class _Leecher:
    have: int
    shown: int
    credit: int
    grant: int = 0
    """Pieces that it may be shown though others have them."""


class Seeding:
    """What one seed has shown to the leechers of one blob."""

    def __init__(
        self,
        count: int,
        *,
        rank: int = 0,
        seeds: int = 1,
        credit: int = 8,
        ahead: int | None = None,
        known: int | None = None,
    ) -> None:
        """`known`: pieces, from the first on, that are here by now; None: all of them.

        `credit`: pieces shown to a leecher that it does not have yet, at most.

        `ahead`: the same over all leechers, though each is shown one. A leecher begins with one and
        is shown one more for each that came, up to its part of `ahead`: so the first pieces go to
        different hosts, leave in order, and none waits behind many others.
        """
        self._credit = credit
        self._ahead = ahead
        self._own = sum(1 << i for i in range(rank, count, seeds)) if seeds > 1 else -1
        self._known = bitset.full(count if known is None else known)
        self._unspread = self._known
        self._leechers: dict[str, _Leecher] = {}

    def join(self, peer: str, have: int) -> int:
        """A leecher connects, or comes back with other pieces; returns the pieces to show it."""
        self.leave(peer)
        self._leechers[peer] = _Leecher(have, 0, self._credit if self._ahead is None else 1)
        self._unspread &= ~have
        return self._show(peer)

    def leave(self, peer: str) -> None:
        """A leecher is gone, and with it what only it had or was to get."""
        if self._leechers.pop(peer, None) is None:
            return
        spread = 0
        for leecher in self._leechers.values():
            spread |= leecher.have | leecher.shown
        self._unspread = self._known & ~spread

    def learn(self, known: int) -> dict[str, int]:
        """More pieces are here; returns those to show to each leecher."""
        fresh = bitset.full(known) & ~self._known
        self._known |= fresh
        self._unspread |= fresh
        for leecher in self._leechers.values():
            self._unspread &= ~leecher.have
        shown = {peer: self._show(peer) for peer in tuple(self._leechers)}
        return {peer: pieces for peer, pieces in shown.items() if pieces}

    def has(self, peer: str, index: int) -> int:
        """A leecher has got a piece, from wherever; returns further pieces to show it."""
        leecher = self._leechers.get(peer)
        if leecher is None:
            return 0
        bit = 1 << index
        leecher.have |= bit
        self._unspread &= ~bit
        if not leecher.shown & bit:
            return 0
        leecher.credit = min(self._credit, leecher.credit + 1)
        return self._show(peer)

    def asked(self, peer: str, index: int) -> int:
        """A leecher asks for a piece: for one not shown, when nobody else gives it.

        Returns further pieces to show it.
        """
        leecher = self._leechers.get(peer)
        if leecher is None or leecher.shown >> index & 1:
            return 0
        leecher.shown |= 1 << index
        self._unspread &= ~(1 << index)
        leecher.grant = self._credit
        return self._show(peer)

    def _show(self, peer: str) -> int:
        leecher = self._leechers[peer]
        fresh = 0
        credit = leecher.credit
        if self._ahead is not None:
            credit = max(1, min(credit, self._ahead // len(self._leechers)))
        while (leecher.shown & ~leecher.have).bit_count() < credit:
            bit = self._next(leecher)
            if not bit:
                break
            leecher.shown |= bit
            fresh |= bit
            self._unspread &= ~bit
        return fresh

    def _next(self, leecher: _Leecher) -> int:
        open_to = self._unspread & ~leecher.have & ~leecher.shown
        own = open_to & self._own
        if own:
            return own & -own
        # The other seeds are about to show theirs: few are taken over at a time, or all go twice.
        taken_over = (leecher.shown & ~leecher.have & ~self._own).bit_count()
        if open_to and (taken_over < _TAKE_OVER or leecher.grant):
            leecher.grant -= taken_over >= _TAKE_OVER
            return 1 << (open_to.bit_length() - 1)
        if leecher.grant and not open_to:
            rest = self._known & ~leecher.have & ~leecher.shown
            leecher.grant -= 1
            return rest & -rest
        return 0
