# SPDX-License-Identifier: Apache-2.0
"""Sets of pieces as Python integers: bit i is piece i.

Set operations on a blob of ten thousand pieces are then a few hundred nanoseconds of C.
"""

from __future__ import annotations

import random
from collections.abc import Iterator


def full(count: int) -> int:
    """All of `count` pieces."""
    return (1 << count) - 1


def lowest(bits: int) -> int:
    """The index of the lowest member; the set must not be empty."""
    return (bits & -bits).bit_length() - 1


def indices(bits: int) -> Iterator[int]:
    """Members in ascending order."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def any_of(bits: int, rng: random.Random) -> int:
    """A member near a random place; the set must not be empty."""
    start = rng.randrange(bits.bit_length())
    above = bits >> start
    return start + lowest(above) if above else lowest(bits)


def first_gap(bits: int, start: int = 0) -> int:
    """The lowest index >= start that is not a member."""
    above = bits >> start
    return start + lowest(~above)


def pack(bits: int, count: int) -> bytes:
    """Little-endian bytes, as they go over the wire and into files."""
    return bits.to_bytes(-(-count // 8), "little")


def unpack(data: bytes | bytearray | memoryview, count: int) -> int:
    """The inverse of `pack`; raises ValueError for a wrong length or a bit beyond the end."""
    if len(data) != -(-count // 8):
        raise ValueError(f"{count} pieces need {-(-count // 8)} bytes, got {len(data)}")
    bits = int.from_bytes(data, "little")
    if bits >> count:
        raise ValueError(f"a bit beyond piece {count - 1} is set")
    return bits
