# SPDX-License-Identifier: Apache-2.0
"""Sends what peers have asked for, a few pieces at a time and everybody in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from shoal.swarm.link import Link, SharedBlob
from shoal.swarm.slots import LOOK, UploadSlots

Wish = tuple[SharedBlob, int]


class UploadQueue:
    """Wires the turns of `UploadSlots` to the links."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._slots = UploadSlots()
        self._links: dict[str, Link] = {}
        self._wishes: dict[str, set[Wish]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, link: Link, blob: SharedBlob, index: int) -> bool:
        """A peer wants a piece, which is here and right; False when it has asked for it already."""
        wishes = self._wishes.setdefault(link.name, set())
        if (blob, index) in wishes or link.closed:
            return False
        wishes.add((blob, index))
        self._links[link.name] = link
        self._slots.ask(link.name, (blob, index), urgent=blob.share.small)
        self._pump()
        return True

    def cancel(self, link: Link, blob: SharedBlob, index: int) -> bool:
        """A peer no longer wants a piece; False when it is on its way, or was never asked for."""
        if not self._slots.cancel(link.name, (blob, index)):
            return False
        self._wishes[link.name].discard((blob, index))
        return True

    def drop(self, link: Link, blob: SharedBlob) -> None:
        """A blob is no longer shared with a peer; what is on its way may arrive."""
        for wish in [wish for wish in self._wishes.get(link.name, ()) if wish[0] is blob]:
            self.cancel(link, *wish)

    def sent(self, link: Link) -> None:
        """The piece under way to a peer has left, or will not be sent."""
        self._slots.sent(link.name)
        self._pump()

    def leave(self, link: Link) -> None:
        """A connection is no more."""
        if self._links.pop(link.name, None) is not None:
            del self._wishes[link.name]
            self._slots.leave(link.name)
            self._pump()

    def waiting(self, link: Link) -> int:
        """Pieces that a peer has asked for and that are not on their way."""
        return self._slots.waiting(link.name)

    def load(self, link: Link) -> int:
        """Pieces that others than this peer wait for."""
        return self._slots.load(link.name)

    def stop(self) -> None:
        """Send nothing more by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pump(self) -> None:
        while (turn := self._slots.next(self._now())) is not None:
            name, wish = turn
            blob, index = cast("Wish", wish)
            self._wishes[name].discard((blob, index))
            try:
                given = self._links[name].give(blob, index)
            except OSError:
                given = False  # The file was closed, as its blob was taken away.
            if not given:
                self._slots.sent(name)
        if self._timer is None and any(self._wishes.values()):
            # Pieces that are slow, or that nobody takes, hold up nobody.
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        under_way = {name: self._links[name].connection for name in self._slots.sending()}
        self._slots.look(
            {name: it.taken for name, it in under_way.items() if not it.held}, self._now()
        )
        self._pump()
