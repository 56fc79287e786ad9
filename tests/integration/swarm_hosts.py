# SPDX-License-Identifier: Apache-2.0
"""Peers for tests: real ones on loopback, and puppets that speak the protocol as a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from shoal.model.digest import Digest
from shoal.swarm import bits as bitset
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.config import PeerConfig
from shoal.swarm.drops import Drop
from shoal.swarm.metainfo import Metainfo, PieceHasher
from shoal.swarm.node import SeedingPlan, SwarmNode
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.pieces import PieceFile, SharedFile
from shoal.swarm.traffic import Refusal, Traffic
from shoal.swarm.wire import VERSION, Decoder, Hello, Message, Open, Piece, encode

PIECE = 4096
"""Small pieces make many of them in little time; nothing in the engine depends on their size."""

PATIENCE = 30.0
"""Seconds after which a test that waits has failed."""

M = TypeVar("M")


class Content:
    """A blob and how it is cut."""

    def __init__(self, size: int, *, piece_size: int = PIECE, seed: int = 0) -> None:
        self.data = random.Random(seed).randbytes(size)
        hasher = PieceHasher(piece_size)
        hasher.update(self.data)
        digest = f"sha256:{hashlib.sha256(self.data).hexdigest()}"
        self.metainfo = Metainfo(digest, size, piece_size, hasher.finish())
        self.digest = Digest.parse(digest)
        self.count = self.metainfo.count
        self.full = bitset.full(self.count)

    def piece(self, index: int) -> bytes:
        start, stop = self.metainfo.span(index)
        return self.data[start:stop]


def pieces(count: int, *, piece_size: int = PIECE, seed: int = 0) -> Content:
    """A blob of this many pieces, the last of which is shorter."""
    return Content(count * piece_size - piece_size // 3, piece_size=piece_size, seed=seed)


class CountedTraffic(Traffic):
    """Counts what one host sends and receives; the metrics count the process."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_received: Counter[str] = Counter()
        self.bytes_sent: Counter[str] = Counter()

    def received(self, peer: PeerInfo | None, count: int) -> None:
        super().received(peer, count)
        self.bytes_received[peer.id if peer else ""] += count

    def sent(self, peer: PeerInfo | None, count: int) -> None:
        super().sent(peer, count)
        self.bytes_sent[peer.id if peer else ""] += count


class Shelf:
    """The provider of one host: what a test put there."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, Callable[[], PieceFile]] = {}
        self.asked: list[Digest] = []
        self.damages: list[tuple[Digest, int]] = []
        self.failure: OSError | None = None
        self.hold: asyncio.Event | None = None

    async def open(self, digest: Digest) -> PieceFile | None:
        self.asked.append(digest)
        await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        make = self.blobs.get(digest)
        return None if make is None else make()

    def damaged(self, digest: Digest, index: int) -> None:
        self.damages.append((digest, index))


class Rank:
    """A place among the seeds of every blob."""

    def __init__(self, rank: int, seeds: int) -> None:
        self._rank = rank, seeds

    def rank(self, digest: Digest) -> tuple[int, int]:
        return self._rank


class Host:
    """One real peer and its folder."""

    def __init__(self, folder: Path, config: PeerConfig, seeding: SeedingPlan | None) -> None:
        folder.mkdir()
        self.folder = folder
        self.shelf = Shelf()
        self.traffic = CountedTraffic()
        peer = PeerInfo(new_peer_id(), "127.0.0.1", 1, origin=seeding is not None)
        self.node = SwarmNode(config, peer, self.shelf, seeding=seeding, seed=1)
        self.node.traffic = self.traffic

    async def start(self) -> None:
        await self.node.start()
        peer = self.node.peer
        self.node.peer = PeerInfo(peer.id, peer.host, self.node.port, peer.zone, peer.origin)

    @property
    def peer(self) -> PeerInfo:
        return self.node.peer

    def path(self, content: Content) -> Path:
        return self.folder / content.digest.hex

    def put(self, content: Content, data: bytes | None = None) -> None:
        """A complete blob, to be found when a peer asks for it."""
        self.path(content).write_bytes(content.data if data is None else data)
        self.shelf.blobs[content.digest] = lambda: PieceFile(
            content.metainfo,
            SharedFile(self.path(content)),
            self.node.executor,
            present=content.full,
            verified=0,
        )

    def file(self, content: Content, have: Iterable[int] = ()) -> PieceFile:
        """A partial blob of which these pieces are there and checked."""
        file = SharedFile(self.path(content), create=content.metainfo.size)
        verified = 0
        for index in have:
            os.pwrite(file.fd, content.piece(index), content.metainfo.span(index)[0])
            verified |= 1 << index
        return PieceFile(content.metainfo, file, self.node.executor, present=0, verified=verified)

    def leech(
        self, content: Content, peers: Iterable[Host | Actor], *, have: Iterable[int] = ()
    ) -> BlobSwarm:
        return self.node.leech(self.file(content, have), [source.peer for source in peers])

    async def whole(self, content: Content) -> None:
        """Return when all pieces are here; the file is what it should be."""
        blob = self.node.blobs[content.digest]
        async with asyncio.timeout(PATIENCE):
            async for _ in blob.pieces.readable(0, content.metainfo.size):
                pass
        assert self.path(content).read_bytes() == content.data
        assert blob.picker is None

    async def fetch(self, content: Content, peers: Iterable[Host | Actor]) -> None:
        self.leech(content, peers)
        await self.whole(content)

    def received_from(self, source: Host | Actor) -> int:
        return self.traffic.bytes_received[source.peer.id]

    def dropped(self, why: Drop) -> float:
        """Peers that this process dropped for a reason: the metric counts all its hosts."""
        return float(self.traffic._dropped[why]._value.get())

    @property
    def wrong_pieces(self) -> float:
        """Wrong pieces that this process received."""
        return float(self.traffic.wrong_pieces._value.get())

    def refused(self, why: Refusal) -> float:
        """Peers that this process turned away for a reason."""
        return float(self.traffic._refused[why]._value.get())

    def keeps_away(self, source: Host | Actor) -> bool:
        """Whether a peer is not dialed."""
        return not self.node.neighbours.bans.may_be_dialed(source.peer.address, self.node.now())

    @property
    def sent_in_all(self) -> int:
        return self.traffic.bytes_sent.total()


class Puppet:
    """One connection to a host, held by the test."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: PeerInfo,
    ) -> None:
        self.reader, self.writer, self.peer = reader, writer, peer
        self._decoder = Decoder()

    @classmethod
    async def dial(
        cls,
        host: Host,
        *,
        peer: PeerInfo | None = None,
        greet: bool = True,
        security: ssl.SSLContext | None = None,
    ) -> Puppet:
        reader, writer = await asyncio.open_connection(host.peer.host, host.peer.port, ssl=security)
        puppet = cls(reader, writer, peer or PeerInfo(new_peer_id(), "127.0.0.1", 1))
        if greet:
            puppet.say(Hello(VERSION, puppet.peer))
            await puppet.hear(Hello)
        return puppet

    def say(self, *messages: Message) -> None:
        self.writer.write(b"".join(map(encode, messages)))

    def say_raw(self, data: bytes) -> None:
        self.writer.write(data)

    def open(
        self, content: Content, bits: int = 0, *, channel: int = 0, seed: bool = False
    ) -> None:
        packed = bitset.pack(bits, content.count)
        self.say(Open(channel, content.digest, content.count, packed, seed))

    def give(self, content: Content, index: int, *, channel: int = 0, data: bytes = b"") -> None:
        data = data or content.piece(index)
        self.say(Piece(channel, index, len(data)))
        self.say_raw(data)

    async def listen(self) -> AsyncIterator[tuple[Message, bytes]]:
        """All messages with the payload of pieces, until the connection ends."""
        payload = bytearray()
        while True:
            target = self._decoder.buffer()
            try:
                data = await self.reader.read(len(target))
            except ConnectionError:
                return
            if not data:
                return
            target[: len(data)] = data
            message = self._decoder.received(len(data))
            if message is None:
                continue
            if self._decoder.payload_due:
                assert isinstance(message, Piece)
                payload = bytearray(message.length)
                self._decoder.take_payload(memoryview(payload))
            else:
                yield message, bytes(payload) if isinstance(message, Piece) else b""

    async def hear(self, kind: type[M]) -> M:
        """The next message of this kind; others are passed over."""
        async with asyncio.timeout(PATIENCE):
            async for message, _ in self.listen():
                if isinstance(message, kind):
                    return message
        raise ConnectionError(f"the connection ended before a {kind.__name__} came")

    async def hear_piece(self) -> tuple[Piece, bytes]:
        async with asyncio.timeout(PATIENCE):
            async for message, payload in self.listen():
                if isinstance(message, Piece):
                    return message, payload
        raise ConnectionError("the connection ended before a piece came")

    async def dropped(self) -> list[Message]:
        """Return when the other side has closed the connection: what it said before."""
        async with asyncio.timeout(PATIENCE):
            return [message async for message, _ in self.listen()]

    async def hang_up(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            return


class Stage:
    """All peers of one test. Leaving it stops them, and checks that nothing of them is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts: list[Host] = []
        self._servers: list[asyncio.Server] = []
        self._puppets: list[Puppet] = []
        self._plays: set[asyncio.Task[None]] = set()
        self.faults: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.faults.append(context))
        # The thread and the pipe that asyncio keeps are there before anything is counted.
        await asyncio.to_thread(lambda: None)
        self._files = open_files()
        self._tasks = asyncio.all_tasks()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        async with asyncio.timeout(PATIENCE):
            for puppet in self._puppets:
                await puppet.hang_up()
            for play in self._plays:
                play.cancel()
            await asyncio.gather(*self._plays, return_exceptions=True)
            for server in self._servers:
                server.close()
                await server.wait_closed()
            for host in self._hosts:
                await host.node.stop()
        if error is None:
            assert asyncio.all_tasks() - self._tasks - {asyncio.current_task()} == set()
            assert self.faults == [], self.faults
            await until(lambda: open_files() == self._files)

    async def host(self, *, origin: tuple[int, int] | None = None, **settings: Any) -> Host:
        """A peer that listens; `origin`: it seeds, with this rank of that many seeds."""
        config = PeerConfig(**({"listen": "127.0.0.1:0"} | settings))
        seeding = None if origin is None else Rank(*origin)
        host = Host(self._folder / f"host-{len(self._hosts)}", config, seeding)
        await host.start()
        self._hosts.append(host)
        return host

    async def seed(self, *contents: Content, **settings: Any) -> Host:
        """A peer that has these blobs whole."""
        host = await self.host(**settings)
        for content in contents:
            host.put(content)
        return host

    async def dial(self, host: Host, **options: Any) -> Puppet:
        """A puppet that connects to a host."""
        puppet = await Puppet.dial(host, **options)
        self._puppets.append(puppet)
        return puppet

    async def puppet(
        self,
        play: Callable[[Puppet], Awaitable[None]],
        *,
        name: Callable[[], str] | None = None,
    ) -> Actor:
        """A puppet that others can dial; `play` is run with each connection, after the hellos.

        `name`: gives the id that it says each time, if it is another than it is known by.
        """
        actor = Actor(PeerInfo(new_peer_id(), "127.0.0.1", 1))

        async def perform(puppet: Puppet) -> None:
            puppet.say(Hello(VERSION, puppet.peer))
            try:
                await puppet.hear(Hello)
                await play(puppet)
            except ConnectionError:
                pass
            finally:
                puppet.writer.close()

        def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            actor.connections += 1
            me = actor.peer
            if name is not None:
                me = PeerInfo(name(), me.host, me.port)
            task = asyncio.get_running_loop().create_task(perform(Puppet(reader, writer, me)))
            self._plays.add(task)
            task.add_done_callback(self._played)

        server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        actor.peer = PeerInfo(actor.peer.id, "127.0.0.1", port)
        return actor

    def _played(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.faults.append({"puppet": error})


class Actor:
    """The public side of a puppet that listens."""

    def __init__(self, peer: PeerInfo) -> None:
        self.peer = peer
        self.connections = 0


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


async def until(true: Callable[[], object]) -> None:
    """Wait for something that nothing tells of."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
