# SPDX-License-Identifier: Apache-2.0
"""The peer endpoint of one process: it listens, dials, and holds what all blobs share."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import structlog

from shoal.model.digest import Digest
from shoal.swarm.asking import Asking
from shoal.swarm.bans import Bans
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.buffers import Buffers
from shoal.swarm.config import PeerConfig
from shoal.swarm.doors import Doors
from shoal.swarm.link import Link
from shoal.swarm.pace import Intake
from shoal.swarm.peers import PeerInfo
from shoal.swarm.pieces import PieceFile
from shoal.swarm.security import speaks_for
from shoal.swarm.seeding import Seeding
from shoal.swarm.slots import LinkPolicy, Standing
from shoal.swarm.streams import Stream
from shoal.swarm.throttle import throttle
from shoal.swarm.traffic import Traffic
from shoal.swarm.turns import Turns
from shoal.swarm.uploads import UploadQueue
from shoal.swarm.wire import Open, ProtocolError

_JANITOR = 5.0
_THREADS = 2
"""That check pieces and write them; hashing and writing leave the event loop its core."""

_UNCHECKED = 4
"""Pieces that wait for a thread, beyond which no more are received: senders wait for a slow disk or
processor, and pieces are hashed while the processor's cache still holds them."""

_STUCK = 10.0
"""Seconds that a peer may take nothing of what it asked for."""

_CREDIT_BYTES = 8 * 1024 * 1024
"""What a seed shows a leecher in advance; at least 4 pieces."""

_AHEAD = 32
"""Pieces that a seed shows all leechers of a blob in advance."""

_SILENT = 1.0
"""Seconds for a hello when there is no room for others."""

_MAX_WISHES = 1024
"""Blobs that a peer asked for in vain and is told of when they are here."""

log = structlog.get_logger(__name__)


class BlobProvider(Protocol):
    """The blobs of this host."""

    async def open(self, digest: Digest) -> PieceFile | None:
        """A complete blob, or None when it is not here."""

    def damaged(self, digest: Digest, index: int) -> None:
        """A piece that was thought to be here is not what it should be."""


class SeedingPlan(Protocol):
    """How the owners of a blob share the work of spreading it."""

    def rank(self, digest: Digest) -> tuple[int, int]:
        """This seed's place among the seeds of the blob, and their number."""


class SwarmNode:
    """All of this process's peers and the blobs it shares with them."""

    def __init__(
        self,
        config: PeerConfig,
        peer: PeerInfo,
        provider: BlobProvider,
        *,
        seeding: SeedingPlan | None = None,
        seed: int | None = None,
    ) -> None:
        """`seeding`: given by origins, which show pieces bit by bit. `seed`: for the picker.

        Raises `CannotSecure` when a file of the TLS config is of no use.
        """
        self.config = config
        self.peer = peer
        self.provider = provider
        self.traffic = Traffic()
        self.rng = random.Random(seed)
        self.links: dict[str, Link] = {}
        self.blobs: dict[Digest, BlobSwarm] = {}
        self.executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="pieces")
        self.turns = Turns(_THREADS)
        self._seeding = seeding
        self._buffers = Buffers(config.buffers)
        self._starved: deque[Link] = deque()
        self._wishes: dict[Digest, set[Link]] = {}
        self._strangers: set[Link] = set()
        self._dialing: set[str] = set()
        self._renamed: dict[tuple[str, int, str], str] = {}
        """Who answered where another id was expected: a process that was started anew."""
        self._opening: dict[Digest, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.ingress = throttle(config.ingress, config.per_blob)
        self.egress = throttle(config.egress, config.per_blob)
        self.uploads = UploadQueue(self.now)
        self.intake = Intake()
        self.bans = Bans()
        self._policy = LinkPolicy(max_dialed=config.max_dialed, max_accepted=config.max_accepted)
        self._doors = Doors(
            config, self.traffic, has_room=self._has_room, enter=self._enter, spawn=self.spawn
        )
        self._asking = Asking(
            self.links,
            self.blobs,
            self.traffic,
            intake=self.intake,
            now=self.now,
            spawn=self.spawn,
            keep_away=self.keep_away,
        )

    def now(self) -> float:
        """The event loop's clock in seconds."""
        return asyncio.get_running_loop().time()

    # -- life

    async def start(self) -> None:
        """Listen; raises OSError when the address is taken."""
        self._doors.open()
        self.spawn(self._janitor())

    @property
    def listening(self) -> bool:
        """Whether peers can connect."""
        return self._doors.port > 0

    @property
    def port(self) -> int:
        """The port listened on; 0 when there is none."""
        return self._doors.port

    @property
    def secured(self) -> bool:
        """Whether peers speak TLS."""
        return self._doors.secured

    async def stop(self) -> None:
        """Close everything."""
        self._doors.close()
        for link in (*self.links.values(), *self._strangers):
            link.close("this side stops")
        self.uploads.stop()
        for throttle_ in (self.ingress, self.egress):
            if throttle_ is not None:
                throttle_.stop()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for blob in tuple(self.blobs.values()):
            blob.close()
        self.blobs.clear()
        await asyncio.to_thread(self.executor.shutdown)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background until the node stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work of the peer endpoint failed", exc_info=error)

    # -- blobs

    def add(self, pieces: PieceFile) -> BlobSwarm:
        """Take part in a blob. The node then owns the file, and closes it if it has one already."""
        blob = self.blobs.get(pieces.digest)
        if blob is not None:
            if blob.pieces is not pieces:
                pieces.close()
            return blob
        seeding = None
        if self._seeding is not None:
            metainfo = pieces.metainfo
            # While a blob still comes from its backend, nobody else has it to share the work with.
            rank, seeds = self._seeding.rank(pieces.digest) if metainfo.whole else (0, 1)
            seeding = Seeding(
                metainfo.count,
                rank=rank,
                seeds=seeds,
                credit=max(4, _CREDIT_BYTES // metainfo.piece_size),
                ahead=_AHEAD,
                known=metainfo.known,
            )
        blob = self.blobs[pieces.digest] = BlobSwarm(self, pieces, seeding)
        for link in self._wishes.pop(pieces.digest, ()):
            link.attach(blob)
        return blob

    def leech(self, pieces: PieceFile, peers: Iterable[PeerInfo]) -> BlobSwarm:
        """Take part in a blob and fetch what is missing of it."""
        blob = self.add(pieces)
        blob.leech(peers)
        self._asking.keep_ticking()
        return blob

    def remove(self, digest: Digest) -> None:
        """Take part in a blob no more."""
        blob = self.blobs.pop(digest, None)
        if blob is not None:
            blob.close()
            self._asking.forget(blob)

    def on_open(self, link: Link, message: Open) -> None:
        """A peer takes part in a blob."""
        blob = self.blobs.get(message.digest)
        if blob is not None:
            blob.on_open(link, message)
        else:
            self.spawn(self._look_up(link, message))

    async def _look_up(self, link: Link, message: Open) -> None:
        digest = message.digest
        if digest not in self.blobs:
            if digest not in self._opening:
                self._opening[digest] = self.spawn(self._open_here(digest))
            await asyncio.wait([self._opening[digest]])
        blob = self.blobs.get(digest)
        if link.closed:
            return
        if blob is None:
            if link.refused < _MAX_WISHES:
                self._wishes.setdefault(digest, set()).add(link)
            link.refuse(message.channel)
            return
        try:
            blob.on_open(link, message)
        except ProtocolError as error:
            link.close(f"protocol error: {error}")

    async def _open_here(self, digest: Digest) -> None:
        """Take part in a blob if it is on this host."""
        try:
            pieces = await self.provider.open(digest)
        except OSError as error:
            log.warning("blob not readable", digest=str(digest), error=str(error))
            return
        finally:
            del self._opening[digest]
        if pieces is not None:
            self.add(pieces)

    # -- peers

    def connect(self, blob: BlobSwarm) -> None:
        """Get links to a blob's candidates, up to the number that one blob may dial."""
        linked = 0
        for peer in tuple(blob.candidates.values()):
            link = self._link_to(peer)
            if link is not None:
                link.attach(blob)
                linked += 1
        wanted = self._policy.to_dial(linked)
        for peer in tuple(blob.candidates.values()):
            if wanted <= 0:
                return
            if self._link_to(peer) is not None or self.bans.holds(peer.id, self.now()):
                continue
            wanted -= 1
            if peer.id not in self._dialing:
                self._dialing.add(peer.id)
                self.spawn(self._dial(peer))

    def _link_to(self, peer: PeerInfo) -> Link | None:
        """The link to a peer; also when it was started anew since the tracker heard of it."""
        link = self.links.get(peer.id)
        if link is None and (now_called := self._renamed.get((peer.host, peer.port, peer.id))):
            link = self.links.get(now_called)
        return link

    async def _dial(self, peer: PeerInfo) -> None:
        link = None
        try:
            async with asyncio.timeout(self.config.handshake_timeout):
                link = self._begin(await self._doors.dial(peer), dialed=True)
                greeted = await link.greeted
            if greeted.id != peer.id:
                self._renamed[peer.host, peer.port, peer.id] = greeted.id
        except (OSError, TimeoutError) as error:
            if link is not None:
                link.close("no handshake in time")
            log.info("peer not reached", peer=peer.address, error=repr(error))
        finally:
            self._dialing.discard(peer.id)
        for blob in tuple(self.blobs.values()):
            if peer.id not in blob.candidates:
                continue
            if link is not None and not link.closed:
                link.attach(blob)
            elif peer.id not in self.links:
                del blob.candidates[peer.id]
                self.connect(blob)

    def _begin(self, stream: Stream, *, dialed: bool) -> Link:
        link = Link(self, stream, dialed=dialed)
        self._strangers.add(link)
        return link

    def _has_room(self, entering: int) -> bool:
        """Whether one more connection can be taken in; perhaps another one makes room."""
        accepted = [link for link in self.links.values() if not link.dialed]
        strangers = [link for link in self._strangers if not link.dialed]
        if self._policy.has_room(len(accepted) + len(strangers) + entering):
            return True
        standings = [
            Standing(
                link.id,
                link.since,
                link.last_wanted,
                bool(link.pace.in_flight or link.connection.pieces_queued)
                or self.uploads.waiting(link) > 0,
            )
            for link in accepted
        ]
        peer = self._policy.make_room(standings, self.now())
        if peer is not None:
            self.links[peer].close("room is made for another peer")
            return True
        # Whoever connects and says nothing must not keep others out for as long as it may.
        oldest = min(strangers, key=lambda link: link.since, default=None)
        if oldest is None or self.now() - oldest.since < _SILENT:
            return False
        oldest.close("no handshake while others wait")
        return True

    def _enter(self, stream: Stream) -> None:
        link = self._begin(stream, dialed=False)
        link.greet_within(self.config.handshake_timeout)

    def on_greeted(self, link: Link, peer: PeerInfo) -> None:
        """A peer has said who it is."""
        if peer.id == self.peer.id or self.bans.holds(peer.id, self.now()):
            link.close("it is this process itself, or kept away")
            return
        if not speaks_for(link.connection.stream, peer.host):
            self.traffic.refused("identity")
            log.warning("peer refused", peer=peer.host, reason="its certificate names other hosts")
            link.close(f"its certificate does not name {peer.host}, which it says that it is")
            return
        known = self.links.get(peer.id)
        if known is not None and known.peer is not None and _place(known.peer) != _place(peer):
            self.traffic.refused("identity")
            link.close(f"another peer at {known.peer.address} has its id")
            return
        crossed = known is not None and known.dialed != link.dialed
        if crossed and link.dialed != (self.peer.id < peer.id):
            # Both sides dialed at once: both keep the connection that the smaller id dialed.
            link.close("there is a connection already")
            return
        self._strangers.discard(link)
        self.links[peer.id] = link
        if known is not None:
            known.close("replaced by a newer connection")
        if not link.greeted.done():
            link.greeted.set_result(peer)
        for blob in self.blobs.values():
            if blob.picker is not None and peer.id in blob.candidates:
                link.attach(blob)

    def on_damaged(self, digest: Digest, index: int) -> None:
        """A piece that was thought to be on this host is not what it should be."""
        self.provider.damaged(digest, index)

    def on_closed(self, link: Link, reason: str) -> None:
        """A connection is no more."""
        self._strangers.discard(link)
        for wishes in self._wishes.values():
            wishes.discard(link)
        if reason.startswith("protocol error"):
            self.traffic.breaches.inc()
        if link.peer is not None and self.links.get(link.peer.id) is link:
            del self.links[link.peer.id]
            log.info("peer gone", peer=link.peer.address, reason=reason)
            for blob in self.blobs.values():
                # The tracker hands it out again if it is still there; meanwhile others may do.
                if blob.candidates.pop(link.peer.id, None) is not None:
                    self.connect(blob)

    def ban(self, link: Link, reason: str) -> None:
        """Close a link whose peer sent wrong pieces, and stay away from it, longer each time."""
        self.traffic.wrong_pieces.inc()
        self.keep_away(link, reason)

    def keep_away(self, link: Link, reason: str) -> None:
        """Close a link and stay away from its peer, longer each time."""
        strikes = self.bans.add(link.id, self.now())
        log.warning("peer kept away", peer=link.id, reason=reason, strikes=strikes)
        link.close(reason)

    # -- requests

    def fill(self, link: Link) -> None:
        """Ask a peer for as much as its pace allows."""
        self._asking.fill(link)

    def fill_all(self) -> None:
        """Ask all peers, those first that are quick."""
        self._asking.fill_all()

    def refill(self, blob: BlobSwarm) -> None:
        """Pieces of a blob can be asked for again."""
        self._asking.refill(blob)

    def _shared(self, link: Link) -> list[BlobSwarm]:
        return [self.blobs[blob.digest] for blob in link.blobs if blob.digest in self.blobs]

    def take_memory(self, link: Link, length: int) -> memoryview | None:
        """Memory for a piece; a link that gets none is told when there is some."""
        memory = self._buffers.take(length) if self.turns.waiting < _UNCHECKED else None
        if memory is None:
            self._starved.append(link)
        return memory

    def give_back_memory(self, payload: memoryview) -> None:
        """A piece's memory is free again."""
        self._buffers.give_back(payload)
        waiting, self._starved = self._starved, deque()
        while waiting:
            waiting.popleft().connection.resume()
            if self._starved:
                # There is none left. First come, first served.
                self._starved.extend(waiting)
                return

    # -- time

    def _drop_stuck(self, link: Link) -> None:
        reason = "it takes nothing of what it asked for"
        if link.peer is None:
            link.close(reason)
        else:
            self.keep_away(link, reason)

    async def _janitor(self) -> None:
        while True:
            await asyncio.sleep(_JANITOR)
            now = self.now()
            for link in tuple(self.links.values()):
                stuck = link.connection.stuck_since()
                if stuck is not None and now - stuck > _STUCK:
                    self._drop_stuck(link)
                elif now - link.last_wanted > self.config.idle_timeout and not any(
                    blob.picker is not None for blob in self._shared(link)
                ):
                    link.close("nothing was wanted for a while")
            for digest, blob in tuple(self.blobs.items()):
                if (
                    blob.picker is None
                    and not blob.links
                    and now - blob.last_used > self.config.idle_timeout
                ):
                    self.remove(digest)
            if not any(blob.picker is not None for blob in self.blobs.values()):
                self._buffers.trim()
            self._wishes = {digest: links for digest, links in self._wishes.items() if links}
            self._renamed = {k: peer for k, peer in self._renamed.items() if peer in self.links}
            self.bans.forgive(now)


def _place(peer: PeerInfo) -> tuple[str, int]:
    return peer.host, peer.port
