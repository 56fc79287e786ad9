# SPDX-License-Identifier: Apache-2.0
"""The protocol's state with one peer: its channels, what it was asked for, how fast it is."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from shoal.config.units import join_address, split_address
from shoal.model.digest import Digest
from shoal.swarm.config import PeerConfig
from shoal.swarm.connection import Connection
from shoal.swarm.drops import Drop
from shoal.swarm.floods import Flood, Floods
from shoal.swarm.limits import Share
from shoal.swarm.metainfo import Metainfo
from shoal.swarm.meter import Meter
from shoal.swarm.pace import Intake, Pace
from shoal.swarm.peers import PeerInfo
from shoal.swarm.pieces import PieceFile
from shoal.swarm.streams import Stream
from shoal.swarm.throttle import Throttle
from shoal.swarm.traffic import Traffic
from shoal.swarm.trickle import Trickle
from shoal.swarm.wire import (
    MAX_CHANNELS,
    VERSION,
    Cancel,
    Close,
    Have,
    Hello,
    Indexed,
    Message,
    Open,
    Piece,
    Ping,
    Pong,
    ProtocolError,
    Reject,
    Request,
    Unknown,
)

log = structlog.get_logger(__name__)

MAX_QUEUED = 256
"""Pieces that a peer may have asked for and not been sent yet."""

MAX_OPENING = 1024
"""Blobs that a peer may have opened and that are still being looked up here."""

MAX_OPENING_BYTES = 4 * 1024 * 1024
"""Bits of the blobs that a peer may have opened and that are still being looked up here."""

_names = itertools.count()


@dataclass(slots=True)
class _Opening:
    """A blob that a peer has opened and that is being looked up here."""

    bits: bytes
    count: int
    fresh: int = 0
    """The pieces that the peer has got meanwhile."""


class SharedBlob(Protocol):
    """A blob as its links see it."""

    digest: Digest
    count: int
    metainfo: Metainfo
    pieces: PieceFile
    share: Share

    def shown_at_first(self) -> tuple[bytes, bool]: ...
    def on_have(self, link: Link, index: int) -> bool: ...
    def on_request(self, link: Link, index: int) -> None: ...
    def on_reject(self, link: Link, index: int) -> None: ...
    def on_piece(self, link: Link, index: int, payload: memoryview) -> bool: ...
    def on_gone(self, link: Link) -> None: ...


class Uploads(Protocol):
    """What the peers have asked for, as the links see it."""

    def ask(self, link: Link, blob: SharedBlob, index: int) -> bool: ...
    def cancel(self, link: Link, blob: SharedBlob, index: int) -> bool: ...
    def drop(self, link: Link, blob: SharedBlob) -> None: ...
    def sent(self, link: Link) -> None: ...
    def leave(self, link: Link) -> None: ...
    def waiting(self, link: Link) -> int: ...
    def load(self, link: Link) -> int: ...


class Endpoint(Protocol):
    """The process's peer endpoint as its links see it."""

    config: PeerConfig
    peer: PeerInfo
    traffic: Traffic
    ingress: Throttle | None
    egress: Throttle | None
    intake: Intake

    @property
    def uploads(self) -> Uploads: ...

    def now(self) -> float: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> object: ...
    def take_memory(self, link: Link, length: int) -> memoryview | None: ...
    def give_back_memory(self, payload: memoryview) -> None: ...
    def on_greeted(self, link: Link, peer: PeerInfo) -> None: ...
    def on_open(self, link: Link, message: Open) -> None: ...
    def on_damaged(self, digest: Digest, index: int) -> None: ...
    def on_closed(self, link: Link, reason: str, why: Drop | None) -> None: ...


class Link:
    """One peer. Says hello at once; everything else waits for the other side's hello."""

    def __init__(self, node: Endpoint, stream: Stream, *, dialed: str | None) -> None:
        """`dialed`: where the peer was dialed (`host:port`); None when it came by itself."""
        self.node = node
        self.name = f"link-{next(_names)}"
        self._dialed = dialed
        self.dropped = False
        """It was counted as dropped, and its peer is kept away if it is to be."""
        self.peer: PeerInfo | None = None
        self.pace = Pace(limit=node.config.pipeline, timeout=node.config.request_timeout)
        self.blobs: dict[SharedBlob, int] = {}
        """Our channel of each blob that we opened towards this peer."""
        self._ours: dict[int, SharedBlob] = {}
        self._theirs: dict[int, SharedBlob] = {}
        self._opening: dict[int, _Opening] = {}
        """Their channels of blobs being looked up here."""
        self._refused: set[int] = set()
        """Their channels of blobs that are not here; frames on them may still be under way."""
        self._declined: set[SharedBlob] = set()
        """Blobs that it does not have. It opens them by itself when it does."""
        self._checking: set[tuple[SharedBlob, int]] = set()
        self._due: Counter[tuple[SharedBlob, int]] = Counter()
        """Pieces that may still come: asked for, cancelled ones included."""
        self._header_came = 0.0
        """When the piece that comes began to come."""
        self._load = 0
        """What its header says of the load of the peer."""
        self._floods = Floods()
        self.received = Meter()
        self.sent = Meter()
        self._next_channel = 0
        self.greeted: asyncio.Future[PeerInfo] = asyncio.get_running_loop().create_future()
        self.since = self.last_wanted = node.now()
        self.trickle = Trickle(node.config.request_timeout)
        self.connection = Connection(stream, self, ingress=node.ingress, egress=node.egress)
        self.connection.send(Hello(VERSION, node.peer))

    @property
    def id(self) -> str:
        """The peer's id; known once it has said hello."""
        if self.peer is None:
            raise ProtocolError("it has not said hello")
        return self.peer.id

    @property
    def dialed(self) -> bool:
        """Whether this side dialed."""
        return self._dialed is not None

    @property
    def place(self) -> str:
        """Where the peer listens: where it was dialed, or what it says; known after its hello."""
        if self._dialed is not None:
            return self._dialed
        return self.peer.address if self.peer is not None else ""

    @property
    def reached(self) -> str:
        """Where a peer that was dialed was reached (`address:port`): addresses have many names."""
        if self._dialed is None or not self.address:
            return self.place
        return join_address(self.address, split_address(self._dialed)[1])

    @property
    def address(self) -> str:
        """The address that the connection goes to or comes from."""
        return self.connection.stream.remote

    @property
    def closed(self) -> bool:
        """The connection is no more."""
        return self.connection.is_closed()

    def close(self, reason: str, why: Drop | None = None) -> None:
        """Close the connection. `why`: it is the peer's fault, and counted."""
        self.connection.close(reason, why)

    def breached(self, error: ProtocolError) -> None:
        """Close the connection, since the peer does not keep to the protocol."""
        self.connection.breached(error)

    def greet_within(self, seconds: float) -> None:
        """Close the connection unless the peer says who it is in time."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self.close, "no handshake in time", Drop.HANDSHAKE)
        self.greeted.add_done_callback(lambda _: timer.cancel())

    @property
    def refused(self) -> int:
        """Blobs that the peer opened and that are not here."""
        return len(self._refused)

    # -- what the node and its blobs tell this peer

    def invite(self, blob: SharedBlob) -> bool:
        """Take part in a blob with this peer, unless it said that it does not have it."""
        if blob in self._declined:
            return False
        self.attach(blob)
        return True

    def attach(self, blob: SharedBlob) -> None:
        """Take part in a blob with this peer, unless that is so already."""
        if blob in self.blobs or self.closed:
            return
        self._declined.discard(blob)
        channel = self._next_channel
        if channel >= MAX_CHANNELS:
            self.close("out of channels", Drop.CHANNELS)
            return
        self._next_channel += 1
        self.blobs[blob] = channel
        self._ours[channel] = blob
        bits, seed = blob.shown_at_first()
        self.connection.send(Open(channel, blob.digest, blob.count, bits, seed))

    def detach(self, blob: SharedBlob) -> None:
        """No longer take part in a blob with this peer."""
        self._declined.discard(blob)
        channel = self.blobs.pop(blob, None)
        if channel is not None:
            self._ours.pop(channel, None)
            self.node.uploads.drop(self, blob)
            if self.connection.drop(channel):
                self.node.uploads.sent(self)
            self.connection.send(Close(channel))

    def show(self, blob: SharedBlob, index: int) -> None:
        """Tell of one more piece."""
        channel = self.blobs.get(blob)
        if channel is not None:
            self.connection.send(Have(channel, index))

    def request(self, blob: SharedBlob, index: int) -> None:
        """Ask for a piece."""
        now = self.node.now()
        self.last_wanted = now
        self.pace.asked(blob.metainfo.length(index), now)
        if self._counts:
            self.node.intake.asked()
        self._due[blob, index] += 1
        self.connection.send(Request(self.blobs[blob], index))

    def forgo(self, blob: SharedBlob, index: int) -> None:
        """A piece that was asked for is no longer counted on."""
        self.pace.dropped(blob.metainfo.length(index))
        self._settled()

    def completed(self, length: int, took: float) -> None:
        """A piece is whole, `took` seconds after it was asked for."""
        way = self.node.now() - self._header_came
        self.pace.completed(length, took, way=way, load=self._load)
        self._settled()

    @property
    def _counts(self) -> bool:
        # What seeds show is not to be had elsewhere: their queues do not count.
        return self.peer is not None and not self.peer.origin

    def _settled(self) -> None:
        if self._counts:
            self.node.intake.settled()

    def cancel(self, blob: SharedBlob, index: int) -> None:
        """A piece came from elsewhere."""
        self.forgo(blob, index)
        channel = self.blobs.get(blob)
        if channel is not None:
            self.connection.send(Cancel(channel, index))

    # -- what this peer tells (Handler of its connection)

    def on_message(self, message: Message) -> None:
        """A frame came; raises `ProtocolError`."""
        if isinstance(message, Hello):
            if self.peer is not None:
                raise ProtocolError("a second hello")
            self.peer = message.peer
            self.node.on_greeted(self, message.peer)
        elif self.peer is None:
            raise ProtocolError("the first frame was not a hello")
        elif isinstance(message, Indexed):
            self._on_indexed(message)
        else:
            self._on_channel(message)

    def _on_indexed(self, message: Indexed) -> None:
        match message:
            case Have(channel, index):
                self._on_have(channel, index)
            case Request(channel, index):
                self._on_request(self._their_blob(channel, index), index)
            case Cancel(channel, index):
                self._on_cancel(self._their_blob(channel, index), index)
            case Reject(channel, index):
                blob = self._their_blob(channel, index)
                if not self._due[blob, index]:
                    self._in_vain()
                self._no_longer_due(blob, index)
                blob.on_reject(self, index)

    def _on_channel(self, message: Message) -> None:
        match message:
            case Open(channel, _, count, bits):
                held = sum(len(it.bits) for it in self._opening.values()) + len(bits)
                if len(self._opening) >= MAX_OPENING or held > MAX_OPENING_BYTES:
                    raise ProtocolError(
                        f"more than {MAX_OPENING} blobs or {MAX_OPENING_BYTES} bytes opened at once"
                    )
                if channel in self._opening or channel in self._theirs:
                    raise ProtocolError(f"channel {channel} is open already")
                self._refused.discard(channel)
                self._opening[channel] = _Opening(bits, count)
                self.node.on_open(self, message)
            case Unknown(channel):
                blob = self._ours.pop(channel, None)
                if blob is not None:
                    self.blobs.pop(blob, None)
                    self._declined.add(blob)
                    blob.on_gone(self)
                else:
                    self._in_vain()
            case Close(channel):
                opening = self._opening.pop(channel, None)
                blob = self._theirs.pop(channel, None)
                if blob is not None:
                    blob.on_gone(self)
                    self.detach(blob)
                    for key in [key for key in self._due if key[0] is blob]:
                        del self._due[key]
                elif opening is None:
                    self._in_vain()
            case Ping():
                self._in_vain()
                self.connection.send(Pong())
            case _:
                self._in_vain()

    def _in_vain(self) -> None:
        self._floods.in_vain(self.node.now())

    def opened(self, blob: SharedBlob, channel: int) -> int | None:
        """A blob that the peer opened is open here: the pieces that it has got since.

        None when it has closed it meanwhile. Raises `Flood` when it opens and closes on and on.
        """
        self._floods.opened(blob.digest, blob.count, self.node.now())
        opening = self._opening.pop(channel, None)
        if opening is None:
            return None
        self._theirs[channel] = blob
        return opening.fresh

    def refuse(self, channel: int) -> None:
        """A blob that the peer opened is not here; raises `Flood` when few of all are."""
        self._floods.absent(self.node.now())
        if self._opening.pop(channel, None) is not None:
            self._refused.add(channel)
            self.connection.send(Unknown(channel))

    def _on_have(self, channel: int, index: int) -> None:
        opening = self._opening.get(channel)
        if opening is not None:
            if index >= opening.count:
                raise ProtocolError(f"piece {index} of a blob opened with {opening.count}")
            news = not opening.fresh >> index & 1
            opening.fresh |= 1 << index
        else:
            news = channel not in self._refused and self._their_blob(channel, index).on_have(
                self, index
            )
        if not news:
            self._in_vain()

    def _their_blob(self, channel: int, index: int) -> SharedBlob:
        blob = self._theirs.get(channel)
        if blob is None:
            raise ProtocolError(f"channel {channel} was never opened")
        if index >= blob.count:
            raise ProtocolError(f"piece {index} of {blob.digest} which has {blob.count}")
        return blob

    def _on_request(self, blob: SharedBlob, index: int) -> None:
        self.last_wanted = self.node.now()
        queued = self.node.uploads.waiting(self) + self.connection.pieces_queued
        if queued + len(self._checking) >= MAX_QUEUED:
            raise ProtocolError(f"more than {MAX_QUEUED} pieces asked for at once")
        if blob not in self.blobs or (blob, index) in self._checking:
            self._in_vain()
            return
        blob.on_request(self, index)
        if blob.pieces.verified >> index & 1:
            if not self.node.uploads.ask(self, blob, index):
                self._in_vain()
        else:
            self._checking.add((blob, index))
            self.node.spawn(self._check_and_give(blob, index))

    async def _check_and_give(self, blob: SharedBlob, index: int) -> None:
        claimed = bool(blob.pieces.present >> index & 1)
        try:
            right = await blob.pieces.ensure(index)
        except OSError as error:
            log.warning(
                "piece not readable", digest=str(blob.digest), piece=index, error=str(error)
            )
            right = False
        wanted = (blob, index) in self._checking and blob in self.blobs
        self._checking.discard((blob, index))
        if not wanted:
            return
        if right:
            self.node.uploads.ask(self, blob, index)
            return
        if claimed:
            self.node.on_damaged(blob.digest, index)
        channel = self.blobs.get(blob)
        if channel is not None:
            self.connection.send(Reject(channel, index))
        try:
            self._in_vain()
        except Flood as error:
            self.breached(error)

    def give(self, blob: SharedBlob, index: int) -> bool:
        """Send a piece, whose turn it is; False when there is nothing to send any more."""
        channel = self.blobs.get(blob)
        if channel is None or self.closed:
            return False
        try:
            self._floods.given(blob.digest, blob.count, index, self.node.now())
        except Flood as error:
            self.breached(error)
            return False
        start, stop = blob.metainfo.span(index)
        piece = Piece(channel, index, stop - start, self.node.uploads.load(self))
        self.connection.send_piece(piece, blob.pieces.file, start, blob.share)
        return not self.closed

    def _on_cancel(self, blob: SharedBlob, index: int) -> None:
        # Even one that comes in time: asking and cancelling in turns brings nobody anything.
        self._in_vain()
        self._checking.discard((blob, index))
        if self.node.uploads.cancel(self, blob, index):
            return
        channel = self.blobs.get(blob)
        if channel is not None and self.connection.cancel(channel, index):
            self.node.uploads.sent(self)

    def on_piece_header(self, piece: Piece) -> memoryview | None:
        """Memory for a piece's bytes, whether it is still wanted or not."""
        blob = self._their_blob(piece.channel, piece.index)
        if piece.length != blob.metainfo.length(piece.index):
            raise ProtocolError(
                f"piece {piece.index} of {blob.digest} has "
                f"{blob.metainfo.length(piece.index)} bytes, not {piece.length}"
            )
        if not self._due[blob, piece.index]:
            raise ProtocolError(f"piece {piece.index} of {blob.digest} was not asked for")
        self._header_came, self._load = self.node.now(), piece.load
        return self.node.take_memory(self, piece.length)

    def share_of(self, piece: Piece) -> Share:
        """On whose account a piece's bytes go."""
        return self._their_blob(piece.channel, piece.index).share

    def _no_longer_due(self, blob: SharedBlob, index: int) -> None:
        self._due[blob, index] -= 1
        if self._due[blob, index] <= 0:
            del self._due[blob, index]

    def on_bytes(self, count: int) -> None:
        """Some bytes of a piece came."""
        now = self.node.now()
        self.pace.bytes_came(now)
        self.trickle.came(count)
        self.received.add(count, now)
        self.node.traffic.received(self.peer, count)

    def on_piece(self, piece: Piece, payload: memoryview) -> None:
        """A piece is whole, not checked yet."""
        blob = self._their_blob(piece.channel, piece.index)
        self._no_longer_due(blob, piece.index)
        if not blob.on_piece(self, piece.index, payload):
            self.node.give_back_memory(payload)

    def on_piece_sent(self, piece: Piece) -> None:
        """A piece is in the hands of the kernel."""
        self.last_wanted = now = self.node.now()
        self.sent.add(piece.length, now)
        self.node.traffic.sent(self.peer, piece.length)
        self.node.uploads.sent(self)

    def on_closed(self, reason: str, why: Drop | None) -> None:
        """The connection is no more; `why`: by the peer's fault."""
        if self.connection.payload is not None:
            self.node.give_back_memory(self.connection.payload)
        if not self.greeted.done():
            self.greeted.set_exception(ConnectionError(reason))
            self.greeted.exception()
        attached = set(self.blobs) | set(self._theirs.values())
        self.blobs.clear()
        self._ours.clear()
        self._declined.clear()
        self._theirs.clear()
        self._opening.clear()
        self._checking.clear()
        self._due.clear()
        self.node.uploads.leave(self)
        for blob in attached:
            blob.on_gone(self)
        self.node.on_closed(self, reason, why)
