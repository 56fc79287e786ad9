# SPDX-License-Identifier: Apache-2.0
"""What this process asks its peers for: over all blobs and links, and who is too slow for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from shoal.model.digest import Digest
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.drops import Drop
from shoal.swarm.link import Link
from shoal.swarm.order import ImageTurns, leading
from shoal.swarm.pace import Intake
from shoal.swarm.traffic import Traffic

_TICK = 0.1
"""Seconds between looks for late pieces and stalled peers, while something is being fetched."""

_MAX_STRIKES = 3


class Asking:
    """Deals out requests: small blobs first, then images in turn, each layer after layer."""

    def __init__(
        self,
        links: Mapping[str, Link],
        blobs: Mapping[Digest, BlobSwarm],
        traffic: Traffic,
        *,
        intake: Intake,
        now: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        keep_away: Callable[[Link, Drop, str], None],
    ) -> None:
        self._links = links
        self._blobs = blobs
        self._traffic = traffic
        self._intake = intake
        self._now = now
        self._spawn = spawn
        self._keep_away = keep_away
        self._turns = ImageTurns()
        self._ticking = False

    # -- requests

    def fill(self, link: Link) -> None:
        """Ask a peer for as much as its pace and this host's intake allow, readers first."""
        if link.closed or link.peer is None:
            return
        now = self._now()
        wanting = self._in_turn()
        leaders = self._leaders(wanting)
        for blob in wanting:
            if link.id in blob.links and blob in link.blobs:
                self._serve_readers(blob, now, leads=blob in leaders)
        self._ask(link, wanting, leaders, now)

    def _ask(
        self, link: Link, fetched: list[BlobSwarm], leaders: set[BlobSwarm], now: float
    ) -> None:
        if link.closed or link.peer is None or not link.pace.room(1, now):
            return
        origin, room = link.peer.origin, self._intake.room()
        wanting = [
            blob
            for blob in fetched
            if (room or origin or blob.share.small) and link.id in blob.links and blob in link.blobs
        ]
        while wanting:
            blob = min(wanting, key=self._rank)
            if not link.pace.room(blob.metainfo.piece_size, now):
                return
            free = origin or blob.share.small
            index = None
            if blob.picker is not None and (free or self._may_ask(leads=blob in leaders)):
                beyond = free or self._intake.spare()
                index = blob.picker.pick(link.id, now, beyond=beyond)
            if index is None:
                wanting.remove(blob)
            else:
                self._request(link, blob, index)

    def _may_ask(self, *, leads: bool) -> bool:
        return self._intake.room() if leads else self._intake.idle()

    def refill(self, blob: BlobSwarm) -> None:
        """Pieces of a blob can be asked for again: of anyone who has room."""
        for link in tuple(blob.links.values()):
            self.fill(link)

    def fill_all(self) -> None:
        """Ask for what readers wait for, then of whoever is quick and has room."""
        now = self._now()
        wanting = self._in_turn()
        leaders = self._leaders(wanting)
        for blob in wanting:
            self._serve_readers(blob, now, leads=blob in leaders)
        for link in sorted(self._links.values(), key=lambda link: link.pace.expected):
            self._ask(link, wanting, leaders, now)

    def forget(self, blob: BlobSwarm) -> None:
        """A blob is no longer fetched."""
        image = blob.place.image
        if all(other.place.image != image for other in self._in_turn()):
            self._turns.forget(image)

    def _in_turn(self) -> list[BlobSwarm]:
        wanting = [blob for blob in self._blobs.values() if blob.picker is not None]
        if len(wanting) > 1:
            wanting.sort(key=self._rank)
        return wanting

    def _rank(self, blob: BlobSwarm) -> tuple[bool, tuple[int, int]]:
        return not blob.share.small, self._turns.rank(blob.place)

    @staticmethod
    def _leaders(fetched: Iterable[BlobSwarm]) -> set[BlobSwarm]:
        large = [blob for blob in fetched if not blob.share.small]
        first = leading(blob.place for blob in large)
        return {blob for blob in fetched if blob.share.small or blob.place in first}

    def _serve_readers(self, blob: BlobSwarm, now: float, *, leads: bool) -> None:
        def ease(peer: str) -> float | None:
            link = blob.links[peer]
            ready = blob in link.blobs and link.pace.room(blob.metainfo.piece_size, now)
            return link.pace.expected if ready else None

        while self._may_ask(leads=leads) and blob.picker is not None:
            found = blob.picker.pick_for_reader(now, ease)
            if found is None:
                return
            self._request(blob.links[found[0]], blob, found[1])

    def _request(self, link: Link, blob: BlobSwarm, index: int) -> None:
        self._turns.asked(blob.place)
        link.request(blob, index)

    # -- time

    def keep_ticking(self) -> None:
        """Look after what is being fetched until nothing is."""
        if not self._ticking:
            self._ticking = True
            self._spawn(self._tick())

    async def _tick(self) -> None:
        try:
            while any(blob.picker is not None for blob in self._blobs.values()):
                await asyncio.sleep(_TICK)
                now = self._now()
                for link in tuple(self._links.values()):
                    self._look_at(link, now)
                self.fill_all()
        finally:
            self._ticking = False

    def _look_at(self, link: Link, now: float) -> None:
        if link.connection.paused:
            link.pace.bytes_came(now)  # It is this side that takes nothing.
            link.trickle.rest()
        elif link.pace.stalled(now):
            self._stalled(link, now)
        elif link.connection.payload is None:
            link.trickle.rest()
        elif link.trickle.noticed(now):
            self._stalled(link, now)
        elif link.trickle.hopeless(now):
            self._keep_away(link, Drop.TRICKLE, "it sends next to nothing of a piece")

    def _stalled(self, link: Link, now: float) -> None:
        self._traffic.stalls.inc()
        if link.pace.punish(now) >= _MAX_STRIKES:
            reason = "it sent nothing of what it was asked for, again and again"
            self._keep_away(link, Drop.STALLED, reason)
            return
        self._release(link)

    def _release(self, link: Link) -> None:
        for blob in tuple(self._blobs.values()):
            if blob.links.get(link.id) is link:
                blob.release_requests(link)
