# SPDX-License-Identifier: Apache-2.0
"""Metainfo: how a blob is cut into pieces, and the BLAKE3 digest of each.

A peer can check each piece by itself, so that a wrong one is known before it is written or passed
on.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from blake3 import blake3

from shoal.model.digest import Digest, InvalidDigest

HASH_BYTES = 32
MIN_PIECE = 256 * 1024
MAX_PIECE = 8 * 1024 * 1024
TARGET_PIECES = 512
"""Pieces grow with the blob so that their number stays near this: enough for a swarm to spread
them, few enough that the work per piece does not show."""

MAX_METAINFO_BYTES = 16 * 1024 * 1024
"""JSON size; enough for 2.5 TB at the largest piece size."""


class InvalidMetainfo(ValueError):
    """The bytes are not a metainfo, or its fields contradict each other."""


def piece_size_for(size: int) -> int:
    """The piece size in bytes for a blob of `size` bytes: a power of two, 256 KiB to 8 MiB."""
    piece = MIN_PIECE
    while piece < MAX_PIECE and size > piece * TARGET_PIECES:
        piece *= 2
    return piece


class Metainfo(msgspec.Struct, frozen=True):
    """Digest and size of a blob, its piece size, and 32 bytes of BLAKE3 per piece, concatenated.

    While an origin still fetches the blob, only the first pieces are known: the metainfo *grows*,
    and its owner asks for more of it until it is `whole`.
    """

    digest: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    piece_size: Annotated[int, msgspec.Meta(ge=MIN_PIECE, le=MAX_PIECE)]
    pieces: bytes

    @property
    def count(self) -> int:
        """The number of pieces; 0 for an empty blob."""
        return -(-self.size // self.piece_size)

    @property
    def known(self) -> int:
        """The number of pieces, from the first on, whose digests are known."""
        return len(self.pieces) // HASH_BYTES

    @property
    def whole(self) -> bool:
        """Whether the digests of all pieces are known."""
        return self.known == self.count

    def grown_from(self, earlier: Metainfo) -> bool:
        """Whether this is the same metainfo as an earlier one, or more of it."""
        same = (self.digest, self.size, self.piece_size)
        return same == (earlier.digest, earlier.size, earlier.piece_size) and (
            self.pieces.startswith(earlier.pieces)
        )

    def span(self, index: int) -> tuple[int, int]:
        """First byte of a piece, and the one after its last."""
        start = index * self.piece_size
        return start, min(start + self.piece_size, self.size)

    def length(self, index: int) -> int:
        """Bytes in a piece."""
        start, stop = self.span(index)
        return stop - start

    def piece_hash(self, index: int) -> bytes:
        """The BLAKE3 digest that a piece must have; empty while it is not known."""
        return self.pieces[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def matches(self, index: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether these are the bytes of the piece. Hashes: call it in a thread."""
        return blake3(data).digest() == self.piece_hash(index)

    def encode(self) -> bytes:
        """JSON, with the hashes in base64."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Metainfo:
        """Parse and check a whole metainfo; raises `InvalidMetainfo`."""
        if len(data) > MAX_METAINFO_BYTES:
            raise InvalidMetainfo(f"a metainfo has at most {MAX_METAINFO_BYTES} bytes")
        try:
            metainfo = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidMetainfo(f"not a metainfo: {error}") from error
        metainfo.check()
        return metainfo

    def check(self, *, growing: bool = False) -> None:
        """Raise `InvalidMetainfo` unless the fields agree with each other.

        `growing`: the digests of the last pieces may be missing.
        """
        try:
            Digest.parse(self.digest)
        except InvalidDigest as error:
            raise InvalidMetainfo(str(error)) from error
        if self.piece_size & (self.piece_size - 1):
            raise InvalidMetainfo(f"piece size {self.piece_size} is not a power of two")
        grows = growing and self.known < self.count and len(self.pieces) % HASH_BYTES == 0
        if len(self.pieces) != self.count * HASH_BYTES and not grows:
            raise InvalidMetainfo(
                f"{self.digest}: {self.count} pieces need {self.count * HASH_BYTES} bytes of "
                f"hashes, got {len(self.pieces)}"
            )


class PieceHasher:
    """BLAKE3 digests of a blob's pieces, from its bytes in order."""

    def __init__(self, piece_size: int) -> None:
        self.piece_size = piece_size
        self._room = piece_size
        self._hasher = blake3()
        self._digests = bytearray()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while view:
            part = view[: self._room]
            self._hasher.update(part)
            self._room -= len(part)
            view = view[len(part) :]
            if self._room == 0:
                self._digests += self._hasher.digest()
                self._hasher = blake3()
                self._room = self.piece_size

    @property
    def known(self) -> bytes:
        """The digests of the pieces that are whole so far, in order. From any thread."""
        return bytes(self._digests)

    def finish(self) -> bytes:
        """The digests of all pieces, the last and shorter one included."""
        if self._room < self.piece_size:
            return bytes(self._digests) + self._hasher.digest()
        return bytes(self._digests)


def metainfo_of(data: bytes, digest: Digest | None = None) -> Metainfo:
    """The metainfo of a blob in memory; its digest is taken by SHA-256 unless it is known."""
    hasher = PieceHasher(piece_size_for(len(data)))
    hasher.update(data)
    named = str(digest or Digest.of(data))
    return Metainfo(named, len(data), hasher.piece_size, hasher.finish())
