# SPDX-License-Identifier: Apache-2.0
"""Least recently used first, never a protected one, as few as it takes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.store.eviction import LOW_WATER, CachedBlob, Excess, Limits, Space, choose, excess

VOLUMES = 3


def blob(
    number: int, size: int = 10, used: float = 0.0, volume: int = 0, *, protected: bool = False
) -> CachedBlob:
    return CachedBlob(Digest.of(str(number).encode()), size, used, protected, volume)


@st.composite
def caches(draw: st.DrawFn) -> list[CachedBlob]:
    shapes = draw(
        st.lists(
            st.tuples(
                st.integers(0, 50),
                st.integers(0, 8).map(float),
                st.integers(0, VOLUMES - 1),
                st.booleans(),
            ),
            max_size=30,
        )
    )
    return [
        blob(number, size, used, volume, protected=protected)
        for number, (size, used, volume, protected) in enumerate(shapes)
    ]


@st.composite
def needs(draw: st.DrawFn) -> Excess:
    short = st.dictionaries(st.integers(0, VOLUMES - 1), st.integers(1, 400), max_size=VOLUMES)
    return Excess(draw(st.integers(0, 600)), draw(short))


def freed(gone: list[CachedBlob], volume: int | None = None) -> int:
    return sum(copy.size for copy in gone if volume in {None, copy.volume})


@given(caches(), needs())
def test_enough_goes_or_all_that_may(copies: list[CachedBlob], needed: Excess) -> None:
    gone = [copy for copy, _ in choose(copies, needed)]
    assert len({copy.digest for copy in gone}) == len(gone)
    assert not any(copy.protected for copy in gone)
    may = [copy for copy in copies if not copy.protected]
    assert freed(gone) >= min(needed.budget, freed(may))
    for volume, size in needed.volumes.items():
        assert freed(gone, volume) >= min(size, freed(may, volume))


@given(caches(), needs())
def test_what_stays_was_used_later_than_what_goes(copies: list[CachedBlob], needed: Excess) -> None:
    chosen = choose(copies, needed)
    gone = {copy.digest for copy, _ in chosen}
    stays = [copy for copy in copies if not copy.protected and copy.digest not in gone]
    for copy, why in chosen:
        for other in stays:
            if why == "budget" or other.volume == copy.volume:
                assert copy.last_used <= other.last_used
    assert [copy.last_used for copy, _ in chosen] == sorted(copy.last_used for copy, _ in chosen)


@given(caches(), needs())
def test_no_more_goes_than_is_needed(copies: list[CachedBlob], needed: Excess) -> None:
    chosen = choose(copies, needed)
    gone = [copy for copy, _ in chosen]
    if for_budget := [copy for copy, why in chosen if why == "budget"]:
        assert freed(gone) - for_budget[-1].size < needed.budget
    for volume, size in needed.volumes.items():
        there = [copy for copy, why in chosen if why == "free_space" and copy.volume == volume]
        if there:
            assert freed(there) - there[-1].size < size


@given(caches(), needs(), st.randoms())
def test_the_order_of_the_disk_does_not_matter(
    copies: list[CachedBlob], needed: Excess, order: random.Random
) -> None:
    chosen = choose(copies, needed)
    order.shuffle(copies)
    assert choose(copies, needed) == chosen


@given(
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 500),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 200)), max_size=3),
)
def test_freeing_the_excess_brings_the_cache_to_the_low_water_mark(
    budget: int, used: int, reserved: int, sizes: list[tuple[int, int, int]]
) -> None:
    limits = Limits(budget, min_free=20, min_free_share=0.1)
    volumes = [(Space(total + free, free), coming) for total, free, coming in sizes]
    needed = excess(limits, used, reserved, volumes)
    if needed.budget:
        assert budget
        assert used + reserved - needed.budget <= budget * LOW_WATER
    elif budget:
        assert used + reserved <= budget
    after = [
        (Space(space.total, space.free + needed.volumes.get(number, 0)), coming)
        for number, (space, coming) in enumerate(volumes)
    ]
    assert not excess(limits, max(0, used - needed.budget), min(reserved, budget), after).volumes
    for number, (space, coming) in enumerate(volumes):
        short = space.free - coming < limits.least_free(space.total)
        assert (number in needed.volumes) is short


def test_without_limits_nothing_goes() -> None:
    needed = excess(Limits(), 10**12, 10**9, [(Space(10**12, 0), 0)])
    assert not needed
    assert choose([blob(1)], needed) == []


def test_what_goes_for_a_volume_counts_for_the_budget() -> None:
    copies = [blob(1, 10, 1.0, 0), blob(2, 10, 2.0, 1), blob(3, 10, 3.0, 1)]
    chosen = choose(copies, Excess(10, {1: 10}))
    assert [(copy.digest, why) for copy, why in chosen] == [(copies[1].digest, "free_space")]


def test_the_larger_of_the_free_space_limits_counts() -> None:
    limits = Limits(min_free=30, min_free_share=0.1)
    assert limits.least_free(100) == 30
    assert limits.least_free(1000) == 100
