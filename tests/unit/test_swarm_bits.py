# SPDX-License-Identifier: Apache-2.0
"""Integers as sets of pieces do what Python's own sets do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm import bits as bitset

COUNTS = st.integers(1, 300)
SETS = st.sets(st.integers(0, 299))


def of(members: set[int]) -> int:
    return sum(1 << index for index in members)


@given(COUNTS)
def test_full_holds_every_piece(count: int) -> None:
    assert set(bitset.indices(bitset.full(count))) == set(range(count))


@given(SETS)
def test_indices_are_the_members_in_ascending_order(members: set[int]) -> None:
    assert list(bitset.indices(of(members))) == sorted(members)


@given(SETS.filter(bool))
def test_lowest_is_the_minimum(members: set[int]) -> None:
    assert bitset.lowest(of(members)) == min(members)


@given(SETS.filter(bool), st.integers())
def test_any_of_gives_a_member(members: set[int], seed: int) -> None:
    assert bitset.any_of(of(members), random.Random(seed)) in members


@given(st.sets(st.integers(0, 9), min_size=1))
def test_any_of_gives_every_member_sooner_or_later(members: set[int]) -> None:
    rng = random.Random(7)
    assert {bitset.any_of(of(members), rng) for _ in range(500)} == members


@given(SETS, st.integers(0, 320))
def test_first_gap_is_the_lowest_index_that_is_not_a_member(members: set[int], start: int) -> None:
    gap = bitset.first_gap(of(members), start)
    assert gap >= start
    assert gap not in members
    assert set(range(start, gap)) <= members


@given(COUNTS, SETS)
def test_unpack_undoes_pack(count: int, members: set[int]) -> None:
    bits = of({index for index in members if index < count})
    data = bitset.pack(bits, count)
    assert len(data) == (count + 7) // 8
    assert bitset.unpack(data, count) == bits


@given(COUNTS, SETS)
def test_packed_bit_i_is_bit_i_of_byte_i_over_8(count: int, members: set[int]) -> None:
    members = {index for index in members if index < count}
    data = bitset.pack(of(members), count)
    assert {i for i in range(8 * len(data)) if data[i // 8] >> i % 8 & 1} == members


@given(st.binary(max_size=40), COUNTS)
def test_unpack_takes_what_pack_makes_and_nothing_else(data: bytes, count: int) -> None:
    try:
        bits = bitset.unpack(data, count)
    except ValueError:
        too_high = any(
            8 * i + 7 >= count and byte >> max(0, count - 8 * i) for i, byte in enumerate(data)
        )
        assert len(data) != (count + 7) // 8 or too_high
    else:
        assert bitset.pack(bits, count) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_unpack_takes_any_bytes(kind: type[bytes | bytearray | memoryview]) -> None:
    assert bitset.unpack(kind(b"\x05"), 3) == 0b101
