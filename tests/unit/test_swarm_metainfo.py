# SPDX-License-Identifier: Apache-2.0
"""How blobs are cut into pieces, and that nothing malformed passes for a metainfo."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.swarm.metainfo import (
    HASH_BYTES,
    MAX_METAINFO_BYTES,
    MAX_PIECE,
    MIN_PIECE,
    TARGET_PIECES,
    InvalidMetainfo,
    Metainfo,
    PieceHasher,
    metainfo_of,
    piece_size_for,
)

SIZES = st.integers(0, 1 << 50)
PIECE_SIZES = st.sampled_from([MIN_PIECE << i for i in range(6)])


@st.composite
def metainfos(draw: st.DrawFn) -> Metainfo:
    piece_size = draw(PIECE_SIZES)
    size = draw(st.integers(0, 6 * piece_size))
    digest = str(
        Digest.of(draw(st.binary(max_size=4)), draw(st.sampled_from(["sha256", "sha512"])))
    )
    count = -(-size // piece_size)
    return Metainfo(digest, size, piece_size, draw(st.binary(min_size=32, max_size=32)) * count)


def document(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "digest": str(Digest.of(b"x")),
        "size": MIN_PIECE + 1,
        "piece_size": MIN_PIECE,
        "pieces": base64.b64encode(bytes(2 * HASH_BYTES)).decode(),
    }
    fields.update(changes)
    return json.dumps({k: v for k, v in fields.items() if v is not None}).encode()


# -- piece size


@given(SIZES)
def test_a_piece_size_is_a_power_of_two_within_its_bounds(size: int) -> None:
    piece = piece_size_for(size)
    assert MIN_PIECE <= piece <= MAX_PIECE
    assert piece & (piece - 1) == 0


@given(SIZES, SIZES)
def test_a_larger_blob_never_has_smaller_pieces(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert piece_size_for(small) <= piece_size_for(large)


@given(st.integers(1, MAX_PIECE * TARGET_PIECES))
def test_the_number_of_pieces_stays_near_the_target(size: int) -> None:
    piece = piece_size_for(size)
    count = -(-size // piece)
    assert count <= TARGET_PIECES
    assert piece == MIN_PIECE or count > TARGET_PIECES // 2


# -- spans


@given(metainfos())
def test_spans_cover_the_blob_without_gap_or_overlap(metainfo: Metainfo) -> None:
    end = 0
    for index in range(metainfo.count):
        start, stop = metainfo.span(index)
        assert start == end < stop
        assert metainfo.length(index) == stop - start <= metainfo.piece_size
        end = stop
    assert end == metainfo.size


# -- hashing


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 1300), st.integers(1, 400))
def test_pieces_are_hashed_alike_whatever_the_chunks(
    data: st.DataObject, size: int, piece_size: int
) -> None:
    content = bytes(i * 31 & 255 for i in range(size))
    hasher = PieceHasher(piece_size)
    start = 0
    while start < size:
        stop = start + data.draw(st.integers(0, 500))
        hasher.update(memoryview(content)[start:stop])
        start = stop
    one_by_one = [blake3(content[i : i + piece_size]).digest() for i in range(0, size, piece_size)]
    assert hasher.finish() == b"".join(one_by_one)


def test_finish_may_be_called_in_between() -> None:
    hasher = PieceHasher(4)
    hasher.update(b"abcdef")
    assert hasher.finish() == blake3(b"abcd").digest() + blake3(b"ef").digest()
    hasher.update(b"gh")
    assert hasher.finish() == blake3(b"abcd").digest() + blake3(b"efgh").digest()


def test_the_metainfo_of_a_blob_knows_its_pieces_from_others() -> None:
    content = b"a" * MIN_PIECE + b"b" * 100
    metainfo = metainfo_of(content)
    metainfo.check()
    assert metainfo.digest == str(Digest.of(content))
    assert (metainfo.size, metainfo.count) == (len(content), 2)
    assert metainfo.matches(0, content[:MIN_PIECE])
    assert metainfo.matches(1, memoryview(content)[MIN_PIECE:])
    assert not metainfo.matches(0, content[MIN_PIECE:])
    assert not metainfo.matches(1, b"b" * 99)


def test_an_empty_blob_has_no_pieces() -> None:
    metainfo = metainfo_of(b"")
    metainfo.check()
    assert (metainfo.size, metainfo.count, metainfo.pieces) == (0, 0, b"")


# -- JSON


@given(metainfos())
def test_decode_undoes_encode(metainfo: Metainfo) -> None:
    assert Metainfo.decode(metainfo.encode()) == metainfo


def test_a_well_formed_document_is_taken() -> None:
    assert Metainfo.decode(document()).count == 2


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(document(digest="sha256:short"), id="digest cut"),
        pytest.param(document(digest="md5:" + "0" * 32), id="algorithm"),
        pytest.param(document(digest=7), id="digest a number"),
        pytest.param(document(digest=None), id="digest missing"),
        pytest.param(document(size=-1), id="size negative"),
        pytest.param(document(size="1"), id="size a text"),
        pytest.param(document(size=2 * MIN_PIECE + 1), id="a hash too few"),
        pytest.param(document(size=MIN_PIECE), id="a hash too many"),
        pytest.param(document(size=1 << 80), id="size huge"),
        pytest.param(document(piece_size=0), id="piece size zero"),
        pytest.param(document(piece_size=MIN_PIECE // 2), id="piece size small"),
        pytest.param(document(piece_size=2 * MAX_PIECE), id="piece size large"),
        pytest.param(document(piece_size=MIN_PIECE + 2), id="piece size uneven"),
        pytest.param(document(pieces="?"), id="not base64"),
        pytest.param(document(pieces=base64.b64encode(bytes(63)).decode()), id="half a hash"),
        pytest.param(document()[:-1], id="truncated"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"digest": "\xff\xfe"}', id="not UTF-8"),
        pytest.param(b'{"x":' + b"[" * 100_000, id="nested deeply"),
        pytest.param(b" " * (MAX_METAINFO_BYTES + 1), id="too long"),
    ],
)
def test_what_is_not_a_metainfo_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMetainfo):
        Metainfo.decode(data)


@given(st.binary(max_size=200))
def test_noise_is_refused_with_the_one_error(noise: bytes) -> None:
    with pytest.raises(InvalidMetainfo):
        Metainfo.decode(noise)


@given(st.data())
def test_a_damaged_document_is_refused_or_consistent(data: st.DataObject) -> None:
    text = bytearray(document())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        metainfo = Metainfo.decode(text)
    except InvalidMetainfo:
        return
    metainfo.check()
