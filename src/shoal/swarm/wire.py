# SPDX-License-Identifier: Apache-2.0
"""The frames of the peer protocol, encoded and decoded without I/O.

A frame is a header of 16 bytes and a payload::

    kind u8 | flags u8 | load u16 | channel u32 | index u32 | length u32     (network order)

One connection carries any number of blobs. `channel` is the number that the *sender* gave the blob
in its `Open`; only `Unknown` answers with the number that the other side chose. `load` is 0 in all
frames but `Piece`. Nothing read from the wire is trusted: unknown kinds, lengths beyond the kind's
limit and malformed payloads raise `ProtocolError`, upon which the connection is dropped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec

from shoal.model.digest import Digest, InvalidDigest
from shoal.swarm.metainfo import MAX_PIECE
from shoal.swarm.peers import PeerInfo

VERSION = 2
HEADER = struct.Struct("!BBHIII")
MAX_LOAD = (1 << 16) - 1
MAX_PIECES = 1 << 20
"""Of a blob: 8 TiB in pieces of the largest size, more than a metainfo has room for."""

MAX_CHANNELS = 1 << 16
_MAX_HELLO = 4096
_MAX_OPEN = 256 + MAX_PIECES // 8


class ProtocolError(Exception):
    """The other side does not keep to the protocol."""


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of both sides: who is here. `version` must be equal on both."""

    version: int
    peer: PeerInfo


@dataclass(frozen=True, slots=True)
class Open:
    """The sender takes part in a blob of `count` pieces, and shows those in `bits`.

    `seed`: it holds all pieces, and shows them bit by bit so that each is spread once before any
    twice; a piece that it has not shown may be asked for when nobody else has it.
    """

    channel: int
    digest: Digest
    count: int
    bits: bytes
    seed: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """The sender does not have, or not yet, the blob that the *receiver* opened as `channel`."""

    channel: int


@dataclass(frozen=True, slots=True)
class Have:
    """The sender has, or now shows, one more piece."""

    channel: int
    index: int


@dataclass(frozen=True, slots=True)
class Request:
    """The sender wants a piece."""

    channel: int
    index: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The sender no longer wants a piece that it asked for; it may come all the same."""

    channel: int
    index: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The sender will not send a piece that it was asked for."""

    channel: int
    index: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Header of a piece; `length` bytes of the blob follow.

    `load`: pieces that others wait for at the sender as this one leaves, `MAX_LOAD` at most.
    """

    channel: int
    index: int
    length: int
    load: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """The sender no longer takes part in the blob."""

    channel: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a `Pong`, to learn whether the other side is alive."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to `Ping`."""


Indexed = Have | Request | Cancel | Reject
"""The frames that are most of all: of one piece each."""

Message = Hello | Open | Unknown | Have | Request | Cancel | Reject | Piece | Close | Ping | Pong

_HELLO, _OPEN, _UNKNOWN, _HAVE, _REQUEST, _CANCEL, _REJECT, _PIECE, _CLOSE, _PING, _PONG = range(
    1, 12
)
_INDEXED: dict[type[Indexed], int] = {
    Have: _HAVE,
    Request: _REQUEST,
    Cancel: _CANCEL,
    Reject: _REJECT,
}
_BY_KIND = {kind: cls for cls, kind in _INDEXED.items()}
_LIMITS = {_HELLO: _MAX_HELLO, _OPEN: _MAX_OPEN, _PIECE: MAX_PIECE}
_SEED = 1
_TLS_HANDSHAKE = 22
"""The first byte of a TLS client."""


class _HelloPayload(msgspec.Struct):
    version: int
    peer: PeerInfo | None = None


_HELLO_DECODER = msgspec.json.Decoder(_HelloPayload)


def encode(message: Message) -> bytes:
    """The frame of a message; for a `Piece` its header, after which the payload is to be sent."""
    match message:
        case Have() | Request() | Cancel() | Reject():
            return HEADER.pack(_INDEXED[type(message)], 0, 0, message.channel, message.index, 0)
        case Piece(channel, index, length, load):
            return HEADER.pack(_PIECE, 0, min(load, MAX_LOAD), channel, index, length)
        case Open(channel, digest, count, bits, seed):
            text = str(digest).encode()
            payload = bytes([len(text)]) + text + bits
            flags = _SEED if seed else 0
            return HEADER.pack(_OPEN, flags, 0, channel, count, len(payload)) + payload
        case Hello(version, peer):
            payload = msgspec.json.encode(_HelloPayload(version, peer))
            return HEADER.pack(_HELLO, 0, 0, 0, 0, len(payload)) + payload
        case Unknown(channel):
            return HEADER.pack(_UNKNOWN, 0, 0, channel, 0, 0)
        case Close(channel):
            return HEADER.pack(_CLOSE, 0, 0, channel, 0, 0)
        case Ping():
            return HEADER.pack(_PING, 0, 0, 0, 0, 0)
        case Pong():
            return HEADER.pack(_PONG, 0, 0, 0, 0, 0)


class Decoder:
    """Turns received bytes into messages, told where to put them.

    The caller receives into `buffer()` and reports the count to `received()`, which returns a
    message when one is whole. After a `Piece` the caller must call `take_payload()` with the
    memory for it (of exactly `length` bytes); when that is full, `received()` returns the same
    `Piece` a second time.
    """

    def __init__(self) -> None:
        self._header = memoryview(bytearray(HEADER.size))
        self._target = self._header
        self._filled = 0
        self._fields: tuple[int, ...] | None = None
        self._piece: Piece | None = None

    @property
    def payload_due(self) -> bool:
        """A piece's header has come, and `take_payload` has not been called yet."""
        return self._piece is not None and self._target is self._header

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return self._target[self._filled :]

    def take_payload(self, target: memoryview) -> None:
        """Give the memory for the piece whose header was returned."""
        if self._piece is None or len(target) != self._piece.length:
            raise ValueError("no piece is due, or the memory has not its length")
        self._target = target
        self._filled = 0

    def received(self, count: int) -> Message | None:
        """Account for `count` bytes put into `buffer()`; raises `ProtocolError`."""
        self._filled += count
        if self._filled < len(self._target):
            return None
        if self._piece is not None:
            piece, self._piece = self._piece, None
            self._await_header()
            return piece
        if self._fields is None:
            return self._header_complete()
        fields, self._fields = self._fields, None
        payload = bytes(self._target)
        self._await_header()
        return _parse(fields, payload)

    def _await_header(self) -> None:
        self._target = self._header
        self._filled = 0

    def _header_complete(self) -> Message | None:
        fields = HEADER.unpack(self._header)
        kind, _, load, _, _, length = fields
        self._filled = 0
        if kind == _TLS_HANDSHAKE:
            raise ProtocolError("it speaks TLS, and this side's config has no certificate")
        if not _HELLO <= kind <= _PONG or (load and kind != _PIECE):
            raise ProtocolError(f"unknown frame of kind {kind}")
        if length > _LIMITS.get(kind, 0):
            raise ProtocolError(f"a frame of kind {kind} claims {length} bytes")
        if kind == _PIECE:
            if length == 0:
                raise ProtocolError("an empty piece")
            self._piece = Piece(fields[3], fields[4], length, load)
            return self._piece
        if length:
            self._fields = fields
            self._target = memoryview(bytearray(length))
            return None
        return _parse(fields, b"")


def _parse(fields: tuple[int, ...], payload: bytes) -> Message:
    kind, flags, _, channel, index, _ = fields
    indexed = _BY_KIND.get(kind)
    if indexed is not None:
        return indexed(channel, index)
    match kind:
        case 1:
            return _parse_hello(payload)
        case 2:
            return _parse_open(channel, index, payload, seed=bool(flags & _SEED))
        case 3:
            return Unknown(channel)
        case 9:
            return Close(channel)
        case 10:
            return Ping()
        case _:
            return Pong()


def _parse_hello(payload: bytes) -> Hello:
    try:
        hello = _HELLO_DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed hello: {error}") from error
    if hello.version != VERSION or hello.peer is None:
        raise ProtocolError(
            f"it speaks version {hello.version} of the peer protocol, this side {VERSION}"
        )
    return Hello(hello.version, hello.peer)


def _parse_open(channel: int, count: int, payload: bytes, *, seed: bool) -> Open:
    length = payload[0] if payload else 0
    try:
        digest = Digest.parse(payload[1 : 1 + length].decode("ascii"))
    except (InvalidDigest, UnicodeDecodeError) as error:
        raise ProtocolError(f"open: {error}") from error
    bits = payload[1 + length :]
    if not 0 < count <= MAX_PIECES or len(bits) != -(-count // 8):
        raise ProtocolError(f"open: {len(bits)} bytes of bits do not fit {count} pieces")
    if channel >= MAX_CHANNELS:
        raise ProtocolError(f"open: channel {channel} is beyond {MAX_CHANNELS}")
    return Open(channel, digest, count, bits, seed)
