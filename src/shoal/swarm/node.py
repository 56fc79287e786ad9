# SPDX-License-Identifier: Apache-2.0
"""The peer endpoint of one process: it listens, dials, and holds what all blobs share."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import structlog

from shoal.model.digest import Digest
from shoal.swarm.asking import Asking
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.buffers import Buffers
from shoal.swarm.config import PeerConfig
from shoal.swarm.drops import Drop
from shoal.swarm.link import Link
from shoal.swarm.neighbours import Neighbours
from shoal.swarm.pace import Intake
from shoal.swarm.peers import PeerInfo
from shoal.swarm.pieces import PieceFile
from shoal.swarm.seeding import Seeding
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
        self.blobs: dict[Digest, BlobSwarm] = {}
        self.executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="pieces")
        self.turns = Turns(_THREADS)
        self._seeding = seeding
        self._buffers = Buffers(config.buffers)
        self._starved: deque[Link] = deque()
        self._wishes: dict[Digest, set[Link]] = {}
        self._opening: dict[Digest, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.ingress = throttle(config.ingress, config.per_blob)
        self.egress = throttle(config.egress, config.per_blob)
        self.uploads = UploadQueue(self.now)
        self.intake = Intake()
        self.neighbours = Neighbours(self)
        self.links = self.neighbours.links
        self._asking = Asking(
            self.links,
            self.blobs,
            self.traffic,
            intake=self.intake,
            now=self.now,
            spawn=self.spawn,
            keep_away=self.neighbours.keep_away,
        )

    def now(self) -> float:
        """The clock of asyncio's event loop, in seconds."""
        return time.monotonic()

    # -- life

    async def start(self) -> None:
        """Listen; raises OSError when the address is taken."""
        self.neighbours.doors.open()
        self.spawn(self._janitor())

    @property
    def listening(self) -> bool:
        """Whether peers can connect."""
        return self.neighbours.doors.port > 0

    @property
    def port(self) -> int:
        """The port listened on; 0 when there is none."""
        return self.neighbours.doors.port

    @property
    def secured(self) -> bool:
        """Whether peers speak TLS."""
        return self.neighbours.doors.secured

    async def stop(self) -> None:
        """Close everything."""
        self.neighbours.close("this side stops")
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
        if digest not in self.blobs and not link.closed:
            if digest not in self._opening:
                self._opening[digest] = self.spawn(self._open_here(digest))
            await asyncio.wait([self._opening[digest]])
        blob = self.blobs.get(digest)
        if link.closed:
            return
        try:
            if blob is not None:
                blob.on_open(link, message)
                return
            if link.refused < _MAX_WISHES:
                self._wishes.setdefault(digest, set()).add(link)
            link.refuse(message.channel)
        except ProtocolError as error:
            link.breached(error)

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
        """Get links to a blob's candidates, as many as the policy allows."""
        self.neighbours.connect(blob)

    def on_greeted(self, link: Link, peer: PeerInfo) -> None:
        """A peer has said who it is."""
        self.neighbours.greeted(link, peer)

    def on_damaged(self, digest: Digest, index: int) -> None:
        """A piece that was thought to be on this host is not what it should be."""
        self.provider.damaged(digest, index)

    def on_closed(self, link: Link, reason: str, why: Drop | None) -> None:
        """A connection is no more; `why`: by the peer's fault."""
        for wishes in self._wishes.values():
            wishes.discard(link)
        self.neighbours.closed(link, reason, why)

    def ban(self, link: Link, reason: str) -> None:
        """Close a link whose peer sent wrong pieces, and stay away from it, longer each time."""
        self.traffic.wrong_pieces.inc()
        self.neighbours.keep_away(link, Drop.WRONG_PIECE, reason)

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

    async def _janitor(self) -> None:
        while True:
            await asyncio.sleep(_JANITOR)
            now = self.now()
            for link in tuple(self.links.values()):
                stuck = link.connection.stuck_since()
                if stuck is not None and now - stuck > _STUCK:
                    self.neighbours.keep_away(
                        link, Drop.UNREAD, "it takes nothing of what it asked for"
                    )
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
            self.neighbours.bans.forgive(now)
