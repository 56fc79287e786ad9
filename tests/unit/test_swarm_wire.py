# SPDX-License-Identifier: Apache-2.0
"""The codec of the peer protocol: messages or `ProtocolError`, whatever the portions."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.swarm.metainfo import MAX_PIECE
from shoal.swarm.peers import PeerInfo
from shoal.swarm.wire import (
    HEADER,
    MAX_CHANNELS,
    MAX_LOAD,
    MAX_PIECES,
    VERSION,
    Cancel,
    Close,
    Decoder,
    Have,
    Hello,
    Message,
    Open,
    Piece,
    Ping,
    Pong,
    ProtocolError,
    Reject,
    Request,
    Unknown,
    encode,
)

U32 = st.integers(0, 2**32 - 1)
CHANNELS = st.integers(0, MAX_CHANNELS - 1)
DIGESTS = st.builds(Digest.of, st.binary(max_size=4), st.sampled_from(["sha256", "sha512"]))
PEERS = st.builds(
    PeerInfo,
    id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    host=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()),
    port=st.integers(1, 65535),
    zone=st.sampled_from(["", "rack-1", "Zürich"]),
    origin=st.booleans(),
)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    count = draw(st.integers(1, 100))
    size = (count + 7) // 8
    bits = draw(st.binary(min_size=size, max_size=size))
    return Open(draw(CHANNELS), draw(DIGESTS), count, bits, draw(st.booleans()))


SMALL: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, st.just(VERSION), PEERS),
    opens(),
    st.builds(Unknown, U32),
    st.builds(Have, U32, U32),
    st.builds(Request, U32, U32),
    st.builds(Cancel, U32, U32),
    st.builds(Reject, U32, U32),
    st.builds(Close, U32),
    st.just(Ping()),
    st.just(Pong()),
)
PIECES = st.builds(
    lambda channel, index, payload, load: (Piece(channel, index, len(payload), load), payload),
    U32,
    U32,
    st.binary(min_size=1, max_size=60),
    st.integers(0, MAX_LOAD),
)
FRAMES = st.one_of(SMALL.map(lambda message: (message, b"")), PIECES)


def decode(stream: bytes, portions: Iterable[int] = ()) -> Iterator[tuple[Message, bytes]]:
    """All messages of a stream, received in portions of at most these sizes."""
    decoder = Decoder()
    sizes = iter(portions)
    view = memoryview(stream)
    payload = bytearray()
    while view:
        target = decoder.buffer()
        count = min(len(target), len(view), next(sizes, len(view)))
        target[:count] = view[:count]
        view = view[count:]
        message = decoder.received(count)
        if message is None:
            continue
        if decoder.payload_due:
            assert isinstance(message, Piece)
            payload = bytearray(message.length)
            decoder.take_payload(memoryview(payload))
        else:
            yield message, bytes(payload) if isinstance(message, Piece) else b""


def frame(kind: int, payload: bytes = b"", *, channel: int = 0, index: int = 0) -> bytes:
    return HEADER.pack(kind, 0, 0, channel, index, len(payload)) + payload


def open_frame(text: bytes, count: int, bits: bytes, *, channel: int = 0) -> bytes:
    return frame(2, bytes([len(text)]) + text + bits, channel=channel, index=count)


DIGEST = str(Digest.of(b"")).encode()


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 70)))
def test_messages_come_out_as_they_went_in_whatever_the_portions(
    frames: list[tuple[Message, bytes]], portions: list[int]
) -> None:
    stream = b"".join(encode(message) + payload for message, payload in frames)
    assert list(decode(stream, portions)) == frames


@given(st.lists(FRAMES, max_size=5))
def test_messages_come_out_when_bytes_come_one_by_one(frames: list[tuple[Message, bytes]]) -> None:
    stream = b"".join(encode(message) + payload for message, payload in frames)
    assert list(decode(stream, [1] * len(stream))) == frames


@given(FRAMES, st.data())
def test_a_frame_cut_off_gives_no_message(
    whole: tuple[Message, bytes], data: st.DataObject
) -> None:
    stream = encode(whole[0]) + whole[1]
    assert list(decode(stream[: data.draw(st.integers(0, len(stream) - 1))])) == []


def test_a_load_beyond_what_the_header_holds_is_sent_as_the_largest() -> None:
    [(piece, _)] = decode(encode(Piece(0, 0, 1, MAX_LOAD + 1)) + b"x")
    assert piece == Piece(0, 0, 1, MAX_LOAD)


def test_the_memory_for_a_piece_must_have_its_length() -> None:
    decoder = Decoder()
    with pytest.raises(ValueError, match="no piece is due"):
        decoder.take_payload(memoryview(bytearray(1)))
    header = encode(Piece(0, 0, 5))
    decoder.buffer()[:] = header
    assert decoder.received(len(header)) == Piece(0, 0, 5)
    for wrong in (4, 6):
        with pytest.raises(ValueError, match="has not its length"):
            decoder.take_payload(memoryview(bytearray(wrong)))
    assert decoder.payload_due


PEER = {"id": "0" * 32, "host": "h", "port": 1}


def hello_frame(**changes: object) -> bytes:
    return frame(1, json.dumps({"version": VERSION, "peer": {**PEER, **changes}}).encode())


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(frame(0), id="kind 0"),
        pytest.param(frame(12), id="kind 12"),
        pytest.param(frame(255), id="kind 255"),
        pytest.param(HEADER.pack(10, 0, 1, 0, 0, 0), id="a load where no piece is"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(21), id="TLS hello"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="HTTP"),
        *(
            pytest.param(HEADER.pack(kind, 0, 0, 0, 0, 1), id=f"kind {kind} with a payload")
            for kind in (3, 4, 5, 6, 7, 9, 10, 11)
        ),
        *(
            pytest.param(HEADER.pack(kind, 0, 0, 0, 0, 2**32 - 1), id=f"kind {kind} of 4 GiB")
            for kind in range(1, 12)
        ),
        pytest.param(HEADER.pack(8, 0, 0, 0, 0, MAX_PIECE + 1), id="piece beyond the limit"),
        pytest.param(HEADER.pack(8, 0, 0, 0, 0, 0), id="empty piece"),
        pytest.param(HEADER.pack(1, 0, 0, 0, 0, 4097), id="hello beyond the limit"),
        pytest.param(frame(1), id="empty hello"),
        pytest.param(frame(1, b"{}"), id="hello of nobody"),
        pytest.param(frame(1, b'{"version": 2}'), id="hello without a peer"),
        pytest.param(frame(1, b"\xff" * 10), id="hello not JSON"),
        pytest.param(frame(1, b'{"version": 2, "x": ' + b"[" * 4000), id="hello nested deeply"),
        pytest.param(frame(1, b'{"version":2,"peer":{"id":"\xff\xfe"}}'), id="hello not UTF-8"),
        pytest.param(
            frame(1, json.dumps({"version": VERSION + 1, "peer": PEER}).encode()),
            id="hello of the next version",
        ),
        pytest.param(hello_frame(id="0" * 31), id="peer id short"),
        pytest.param(hello_frame(id="0" * 32 + "\n"), id="peer id with a line end"),
        pytest.param(hello_frame(id="G" * 32), id="peer id not hex"),
        pytest.param(hello_frame(port=0), id="port 0"),
        pytest.param(hello_frame(port=65536), id="port 65536"),
        pytest.param(hello_frame(host=""), id="no host"),
        pytest.param(hello_frame(host="h" * 256), id="host long"),
        pytest.param(frame(2), id="empty open"),
        pytest.param(open_frame(b"", 8, b"\0"), id="open without a digest"),
        pytest.param(open_frame(DIGEST[:-1], 8, b"\0"), id="open with a cut digest"),
        pytest.param(open_frame(b"sha256:\xff", 8, b"\0"), id="open not ASCII"),
        pytest.param(open_frame(DIGEST, 0, b""), id="open of no pieces"),
        pytest.param(open_frame(DIGEST, 8, b""), id="open with too few bits"),
        pytest.param(open_frame(DIGEST, 8, b"\0\0"), id="open with too many bits"),
        pytest.param(open_frame(DIGEST, MAX_PIECES + 1, b"\0"), id="open of too many pieces"),
        pytest.param(open_frame(DIGEST, 8, b"\0", channel=MAX_CHANNELS), id="channel too high"),
    ],
)
def test_what_breaks_the_protocol_raises_protocol_error(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(decode(stream))


def test_a_claimed_length_is_not_allocated_before_it_is_checked() -> None:
    tracemalloc.start()
    try:
        for kind in range(1, 12):
            with pytest.raises(ProtocolError):
                list(decode(HEADER.pack(kind, 0, 0, 0, 0, 2**32 - 1)))
        list(decode(HEADER.pack(8, 0, 0, 0, 0, MAX_PIECE)[:15]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@given(st.binary(max_size=300), st.lists(st.integers(1, 40)))
def test_noise_gives_messages_or_protocol_error_and_nothing_else(
    noise: bytes, portions: list[int]
) -> None:
    with contextlib.suppress(ProtocolError):
        list(decode(noise, portions))


@settings(max_examples=300)
@given(st.lists(FRAMES, min_size=1, max_size=4), st.data())
def test_damaged_frames_give_messages_or_protocol_error_and_nothing_else(
    frames: list[tuple[Message, bytes]], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(encode(message) + payload for message, payload in frames))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        for message, _ in decode(bytes(stream)):
            if not isinstance(message, Piece):
                assert list(decode(encode(message))) == [(message, b"")]
    except ProtocolError:
        pass


def test_headers_of_every_kind_with_random_fields() -> None:
    rng = random.Random(1)
    for _ in range(5000):
        kind = rng.randrange(14)
        length = rng.choice([0, 0, 1, 74, 4096, 4097, rng.getrandbits(32)])
        load = rng.choice([0, 0, 1, MAX_LOAD])
        header = HEADER.pack(
            kind, rng.getrandbits(8), load, rng.getrandbits(32), rng.getrandbits(32), length
        )
        with contextlib.suppress(ProtocolError):
            list(decode(header + rng.randbytes(min(length, 5000))))
