# SPDX-License-Identifier: Apache-2.0
"""The peer endpoint of one process: it listens, dials, and holds what all blobs share."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections import deque
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import structlog

from shoal.config.units import split_address
from shoal.model.digest import Digest
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.buffers import Buffers
from shoal.swarm.config import PeerConfig
from shoal.swarm.link import Link
from shoal.swarm.peers import PeerInfo
from shoal.swarm.pieces import PieceFile
from shoal.swarm.seeding import Seeding
from shoal.swarm.traffic import Traffic
from shoal.swarm.turns import Turns
from shoal.swarm.wire import Open, ProtocolError

_TICK = 0.1
"""Seconds between looks for late pieces and stalled peers, while something is being fetched."""

_JANITOR = 5.0
_THREADS = 2
"""That check pieces and write them; hashing and writing leave the event loop its core."""

_ACCEPT_PAUSE = 1.0
_MAX_STRIKES = 3
_BAN = 30.0
_MAX_BAN = 3600.0
_STUCK = 30.0
"""Seconds that a peer may take nothing of what it asked for."""

_CREDIT_BYTES = 8 * 1024 * 1024
"""What a seed shows a leecher in advance; at least 4 pieces."""

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
        """`seeding`: given by origins, which show pieces bit by bit. `seed`: for the picker."""
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
        self._banned: dict[str, tuple[float, int]] = {}
        self._opening: dict[Digest, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._ticking = False

    def now(self) -> float:
        """The event loop's clock in seconds."""
        return asyncio.get_running_loop().time()

    # -- life

    async def start(self) -> None:
        """Listen; raises OSError when the address is taken."""
        host, port = split_address(self.config.listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        listener.setblocking(False)
        self._listener = listener
        self._listen()
        self.spawn(self._janitor())

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    @property
    def listening(self) -> bool:
        """Whether peers can connect."""
        return self._listener is not None

    async def stop(self) -> None:
        """Close everything."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for link in (*self.links.values(), *self._strangers):
            link.close("this side stops")
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
            rank, seeds = self._seeding.rank(pieces.digest)
            credit = max(4, _CREDIT_BYTES // pieces.metainfo.piece_size)
            seeding = Seeding(pieces.metainfo.count, rank=rank, seeds=seeds, credit=credit)
        blob = self.blobs[pieces.digest] = BlobSwarm(self, pieces, seeding)
        for link in self._wishes.pop(pieces.digest, ()):
            link.attach(blob)
        return blob

    def leech(self, pieces: PieceFile, peers: Iterable[PeerInfo]) -> BlobSwarm:
        """Take part in a blob and fetch what is missing of it."""
        blob = self.add(pieces)
        blob.leech(peers)
        self._keep_ticking()
        return blob

    def remove(self, digest: Digest) -> None:
        """Take part in a blob no more."""
        blob = self.blobs.pop(digest, None)
        if blob is not None:
            blob.close()

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
        links = 0
        for peer in tuple(blob.candidates.values()):
            link = self.links.get(peer.id)
            if link is not None:
                link.attach(blob)
                links += 1
        for peer in tuple(blob.candidates.values()):
            if links >= self.config.max_dialed:
                return
            if peer.id in self.links or self._is_banned(peer.id):
                continue
            links += 1
            if peer.id not in self._dialing:
                self._dialing.add(peer.id)
                self.spawn(self._dial(peer))

    async def _dial(self, peer: PeerInfo) -> None:
        link = None
        try:
            async with asyncio.timeout(self.config.handshake_timeout):
                sock = await _connect(peer.host, peer.port)
                link = Link(self, sock, dialed=True)
                self._strangers.add(link)
                await link.greeted
        except (OSError, TimeoutError) as error:
            if link is not None:
                link.close("no handshake in time")
            log.info("peer not reached", peer=f"{peer.host}:{peer.port}", error=repr(error))
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

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, most likely: the listener would be ready again at once.
            log.warning("no peer accepted for a while", error=str(error), s=_ACCEPT_PAUSE)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener.fileno())
            loop.call_later(_ACCEPT_PAUSE, self._listen)
            return
        accepted = sum(not link.dialed for link in (*self.links.values(), *self._strangers))
        if accepted >= self.config.max_accepted and not self._make_room():
            sock.close()
            return
        link = Link(self, sock, dialed=False)
        self._strangers.add(link)
        self.spawn(self._await_hello(link))

    def _make_room(self) -> bool:
        """Close a link over which nothing was wanted for a second, if there is one."""
        now = self.now()
        idle = [
            link
            for link in self.links.values()
            if not link.dialed
            and link.pace.in_flight == 0
            and link.connection.pieces_queued == 0
            and now - link.last_wanted > 1
        ]
        if idle:
            min(idle, key=lambda link: link.last_wanted).close("room is made for another peer")
        return bool(idle)

    async def _await_hello(self, link: Link) -> None:
        try:
            async with asyncio.timeout(self.config.handshake_timeout):
                await asyncio.shield(link.greeted)
        except (OSError, TimeoutError):
            link.close("no handshake in time")

    def on_greeted(self, link: Link, peer: PeerInfo) -> None:
        """A peer has said who it is."""
        if peer.id == self.peer.id or self._is_banned(peer.id):
            link.close("it is this process itself, or kept away")
            return
        known = self.links.get(peer.id)
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
            log.info("peer gone", peer=f"{link.peer.host}:{link.peer.port}", reason=reason)
            for blob in self.blobs.values():
                # The tracker hands it out again if it is still there; meanwhile others may do.
                if blob.candidates.pop(link.peer.id, None) is not None:
                    self.connect(blob)

    def ban(self, link: Link, reason: str) -> None:
        """Close a link and stay away from its peer, longer each time."""
        peer = link.id
        _, strikes = self._banned.get(peer, (0.0, 0))
        self._banned[peer] = (self.now() + min(_MAX_BAN, _BAN * 2**strikes), strikes + 1)
        self.traffic.wrong_pieces.inc()
        log.warning("peer kept away", peer=peer, reason=reason, strikes=strikes + 1)
        link.close(reason)

    def _is_banned(self, peer: str) -> bool:
        until, _ = self._banned.get(peer, (0.0, 0))
        return self.now() < until

    # -- requests

    def fill(self, link: Link) -> None:
        """Ask a peer for as much as its pace allows, in turn over the blobs it has."""
        if link.closed:
            return
        now = self.now()
        wanting = [blob for blob in self._shared(link) if blob.picker and link.id in blob.links]
        while wanting:
            for blob in tuple(wanting):
                if not link.pace.room(blob.metainfo.piece_size, now):
                    return
                index = blob.picker.pick(link.id, now) if blob.picker is not None else None
                if index is None:
                    wanting.remove(blob)
                else:
                    link.request(blob, index)

    def _shared(self, link: Link) -> list[BlobSwarm]:
        return [self.blobs[blob.digest] for blob in link.blobs if blob.digest in self.blobs]

    def refill(self, blob: BlobSwarm) -> None:
        """Pieces of a blob can be asked for again: of anyone who has room."""
        for link in tuple(blob.links.values()):
            self.fill(link)

    def take_memory(self, link: Link, length: int) -> memoryview | None:
        """Memory for a piece; a link that gets none is told when there is some."""
        memory = self._buffers.take(length)
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

    def _keep_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            self.spawn(self._tick())

    async def _tick(self) -> None:
        """Runs while anything is being fetched."""
        try:
            while any(blob.picker is not None for blob in self.blobs.values()):
                await asyncio.sleep(_TICK)
                now = self.now()
                for link in tuple(self.links.values()):
                    if link.connection.paused:
                        link.pace.bytes_came(now)  # It is this side that takes nothing.
                    elif link.pace.stalled(now):
                        self._stalled(link, now)
                    self.fill(link)
        finally:
            self._ticking = False

    def _stalled(self, link: Link, now: float) -> None:
        self.traffic.stalls.inc()
        if link.pace.punish(now) >= _MAX_STRIKES:
            link.close("it sent nothing of what it was asked for, again and again")
            return
        for blob in self._shared(link):
            blob.release_requests(link)

    async def _janitor(self) -> None:
        while True:
            await asyncio.sleep(_JANITOR)
            now = self.now()
            for link in tuple(self.links.values()):
                stuck = link.connection.stuck_since()
                if stuck is not None and now - stuck > _STUCK:
                    link.close("it takes nothing of what it asked for")
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
            self._banned = {p: ban for p, ban in self._banned.items() if ban[0] + _MAX_BAN > now}


async def _connect(host: str, port: int) -> socket.socket:
    """Connect to the first address of the host that answers."""
    loop = asyncio.get_running_loop()
    # Only names need a resolver, which costs a thread; numbers are parsed in place.
    addresses = (
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        if _is_numeric(host)
        else await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
