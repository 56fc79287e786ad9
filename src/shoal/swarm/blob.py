# SPDX-License-Identifier: Apache-2.0
"""One blob as this process takes part in it: giving, getting, or both."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable
from typing import Protocol

from shoal.model.digest import Digest
from shoal.swarm import bits as bitset
from shoal.swarm.limits import SMALL, Share
from shoal.swarm.link import Endpoint, Link
from shoal.swarm.metainfo import Metainfo
from shoal.swarm.order import Place
from shoal.swarm.peers import PeerInfo
from shoal.swarm.picker import Picker
from shoal.swarm.pieces import PieceFile
from shoal.swarm.seeding import Seeding
from shoal.swarm.turns import Turns
from shoal.swarm.wire import Open, ProtocolError


class BlobEndpoint(Endpoint, Protocol):
    """The process's peer endpoint as its blobs see it."""

    rng: random.Random
    turns: Turns
    links: dict[str, Link]

    def connect(self, blob: BlobSwarm) -> None: ...
    def fill(self, link: Link) -> None: ...
    def fill_all(self) -> None: ...
    def refill(self, blob: BlobSwarm) -> None: ...
    def ban(self, link: Link, reason: str) -> None: ...


class Watcher(Protocol):
    """Told what comes from whom (`shoal.agent.timeline.DownloadTimeline`)."""

    def received(self, peer: PeerInfo, count: int, now: float) -> None: ...
    def stalled(self, peer: PeerInfo) -> None: ...


def share_of(metainfo: Metainfo) -> Share:
    """On whose account a blob's bytes go where rates are limited."""
    return Share(Digest.parse(metainfo.digest), small=metainfo.size <= SMALL)


class BlobSwarm:
    """Wires the pure cores of one blob to the links that carry it."""

    def __init__(self, node: BlobEndpoint, pieces: PieceFile, seeding: Seeding | None) -> None:
        self.node = node
        self.pieces = pieces
        self.metainfo = pieces.metainfo
        self.digest = pieces.digest
        self.count = pieces.metainfo.count
        self.share = share_of(self.metainfo)
        self.place = Place(self.digest, 0)
        """Where it stands in the image that it is pulled with; by default it is one of its own."""
        self.seeding = seeding
        self._zone_share: tuple[int, int] | None = None
        self._zoned = False
        self.picker: Picker | None = None
        self.links: dict[str, Link] = {}
        self._have: dict[str, int] = {}
        """The pieces that each linked peer shows."""
        self._seeds: set[str] = set()
        self.candidates: dict[str, PeerInfo] = {}
        self.last_used = node.now()
        self.watcher: Watcher | None = None

    # -- getting

    def leech(self, peers: Iterable[PeerInfo]) -> None:
        """Begin to fetch what is missing."""
        if self.picker is None and not self.pieces.all_verified:
            self.picker = Picker(
                self.count,
                self.pieces.verified,
                rng=self.node.rng,
                known=self.metainfo.known,
            )
            self.picker.set_share(self._zone_share)
            self.pieces.readers.follow(self)
            for link in self.links.values():
                self._introduce(self.picker, link)
        self.add_peers(peers)
        self.node.refill(self)

    async def learn(self, metainfo: Metainfo) -> None:
        """More pieces of a growing blob can be checked, and so be asked for.

        Raises ValueError when the metainfo is not more of the same.
        """
        fresh = self.pieces.learn(metainfo)
        self.metainfo = metainfo
        # What an earlier process left behind need not be asked for.
        for index in bitset.indices(fresh & self.pieces.present):
            if await self.pieces.ensure(index):
                self._got(index)
        if self.picker is not None:
            self.picker.learn(metainfo.known)
            self.node.refill(self)

    def arrived(self, metainfo: Metainfo) -> None:
        """More pieces of a growing blob are in its file, and can be given."""
        self.pieces.arrived(metainfo)
        self.metainfo = metainfo
        if self.seeding is not None:
            for peer, shown in self.seeding.learn(metainfo.known).items():
                self._show(self.links[peer], shown)

    def settled(self) -> None:
        """The file has its last byte."""
        self.pieces.settled()

    def add_peers(self, peers: Iterable[PeerInfo]) -> None:
        """Peers that may have pieces."""
        for peer in peers:
            if peer.id != self.node.peer.id:
                self.candidates[peer.id] = peer
        self.node.connect(self)

    def keep_to_zone(self, share: tuple[int, int] | None) -> None:
        """The tracker knows of zones: what comes from other zones is this host's share at most.

        `share`: its place among the relays of its zone, and their number; None: it is none of them
        (any more: what was asked for until now may still come).
        """
        self._zoned, self._zone_share = True, share
        if self.picker is not None:
            self.picker.set_share(share)

    def _introduce(self, picker: Picker, link: Link) -> None:
        outside = self._zoned and link.peer is not None and link.peer.zone != self.node.peer.zone
        seed = link.id in self._seeds
        picker.add_peer(link.id, self._have[link.id], seed=seed, outside=outside)

    def stop_leeching(self) -> None:
        """Nothing more is wanted; what is here goes on being given."""
        if self.picker is None:
            return
        picker, self.picker = self.picker, None
        self.pieces.readers.unfollow()
        self.watcher = None
        self.candidates.clear()
        for link in self.links.values():
            for index in picker.asked_of(link.id):
                link.cancel(self, index)

    def set_reader(self, reader: Hashable, start: int, stop: int) -> None:
        """Somebody on this host needs the bytes [start, stop) next (`PieceFile.readers`)."""
        if self.picker is not None:
            size, now = self.metainfo.piece_size, self.node.now()
            self.picker.set_reader(reader, start // size, now, stop=-(-stop // size))

    def remove_reader(self, reader: Hashable) -> None:
        """Somebody on this host reads no more."""
        if self.picker is not None:
            self.picker.remove_reader(reader)

    # -- links

    def shown_at_first(self) -> tuple[bytes, bool]:
        """The pieces to show a peer when it is told of the blob, and whether we seed."""
        if self.seeding is not None:
            return bitset.pack(0, self.count), True
        shown = self.pieces.present if self.pieces.complete else self.pieces.verified
        return bitset.pack(shown, self.count), False

    def on_open(self, link: Link, message: Open) -> None:
        """A peer has opened the blob."""
        if message.count != self.count:
            raise ProtocolError(
                f"{self.digest} has {message.count} pieces there and {self.count} here"
            )
        try:
            have = bitset.unpack(message.bits, self.count)
        except ValueError as error:
            raise ProtocolError(f"open: {error}") from error
        if self.links.get(link.id) is link:
            raise ProtocolError(f"{self.digest} is open already")
        self.last_used = self.node.now()
        fresh = link.opened(self, message.channel)
        if fresh is None:
            return
        have |= fresh & bitset.full(self.count)
        self.links[link.id] = link
        self._have[link.id] = have
        if message.seed:
            self._seeds.add(link.id)
        link.attach(self)
        if link.closed:
            return
        if self.seeding is not None and not message.seed:
            self._show(link, self.seeding.join(link.id, have))
        if self.picker is not None:
            self._introduce(self.picker, link)
            self.node.fill(link)

    def on_have(self, link: Link, index: int) -> bool:
        """A peer has, or shows, one more piece; False when that was known."""
        if self.links.get(link.id) is not link or self._have[link.id] >> index & 1:
            return False
        self._have[link.id] |= 1 << index
        if self.seeding is not None:
            self._show(link, self.seeding.has(link.id, index))
        if self.picker is not None and self.picker.peer_has(link.id, index):
            self.node.fill(link)
        return True

    def on_request(self, link: Link, index: int) -> None:
        """A peer wants a piece."""
        self.last_used = self.node.now()
        if self.pieces.complete and self.picker is None:
            self.pieces.recheck_if_touched()
        if self.seeding is not None:
            self._show(link, self.seeding.asked(link.id, index))

    def on_reject(self, link: Link, index: int) -> None:
        """A peer will not send a piece."""
        if self.links.get(link.id) is link:
            self._have[link.id] &= ~(1 << index)
            if self.seeding is None and self.pieces.verified >> index & 1:
                link.show(self, index)  # It has lost it: now it needs to hear of it.
        if self.picker is not None and self.picker.is_asked(link.id, index):
            link.forgo(self, index)
            self.picker.rejected(link.id, index)
            self.node.refill(self)

    def on_gone(self, link: Link) -> None:
        """A peer no longer takes part in this blob."""
        if link.peer is None or self.links.get(link.id) is not link:
            return
        del self.links[link.id]
        del self._have[link.id]
        self._seeds.discard(link.id)
        if self.seeding is not None:
            self.seeding.leave(link.id)
        if self.picker is not None:
            for index in self.picker.asked_of(link.id):
                link.forgo(self, index)
            self.picker.remove_peer(link.id)
            self.node.refill(self)

    def release_requests(self, link: Link) -> None:
        """A peer stalls: what it was asked for may be asked of others."""
        if self.watcher is not None and link.peer is not None:
            self.watcher.stalled(link.peer)
        if self.picker is not None:
            for index in self.picker.asked_of(link.id):
                link.cancel(self, index)
                self.picker.failed(link.id, index)
            self.node.refill(self)

    def _show(self, link: Link, pieces: int) -> None:
        for index in bitset.indices(pieces):
            link.show(self, index)

    # -- pieces

    def on_piece(self, link: Link, index: int, payload: memoryview) -> bool:
        """A piece's bytes came. False when they are not wanted: the caller keeps the memory."""
        if self.picker is None or not self.picker.is_asked(link.id, index):
            return False
        now = self.node.now()
        link.completed(len(payload), self.picker.arrived(link.id, index, now))
        self.node.spawn(self._check(link, index, payload))
        self.node.fill(link)
        self.node.fill_all()
        return True

    async def _check(self, link: Link, index: int, payload: memoryview) -> None:
        urgency = 0 if self.picker is None else self.picker.urgency(index)
        try:
            async with self.node.turns.take(urgency):
                right = await self.pieces.store(index, payload)
        except OSError as error:
            self.pieces.fail(error)
            return
        finally:
            self.node.give_back_memory(payload)
        if not right:
            if self.picker is not None:
                self.picker.failed(link.id, index)
            self.node.ban(link, f"a wrong piece {index} of {self.digest}")
            return
        if self.watcher is not None and link.peer is not None:
            self.watcher.received(link.peer, self.metainfo.length(index), self.node.now())
        self._got(index)

    async def take(self, index: int, data: bytes) -> bool:
        """A piece that came from outside the swarm; False when it is wrong."""
        if not await self.pieces.store(index, memoryview(data)):
            return False
        self._got(index)
        return True

    def _got(self, index: int) -> None:
        """A piece is here: nobody else need send it, and everybody is told."""
        if self.picker is not None:
            for peer in self.picker.verified(index):
                other = self.links.get(peer)
                if other is not None:
                    other.cancel(self, index)
        for link in tuple(self.links.values()):
            # Half of the peers have it by now: what they never ask for they need not hear of. A
            # seed goes by what has spread.
            if not self._have[link.id] >> index & 1 or link.id in self._seeds:
                link.show(self, index)
        if self.picker is not None and not self.picker.missing:
            self.stop_leeching()
            self.pieces.settled()

    def close(self) -> None:
        """Take part no more."""
        self.stop_leeching()
        for link in tuple(self.node.links.values()):
            link.detach(self)
        self.links.clear()
        self.pieces.close()
