# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.buildindex.clock import HybridClock, Version

NODE = "0" * 16
OTHER = "f" * 16

walls = st.integers(min_value=0, max_value=10_000)
foreign_versions = st.builds(
    Version,
    walls,
    st.integers(min_value=0, max_value=2**31 - 1),
    st.sampled_from([NODE, OTHER]),
)


@given(st.lists(walls | foreign_versions))
def test_a_version_is_later_than_all_that_was_handed_out_or_observed(
    events: list[int | Version],
) -> None:
    clock = HybridClock(NODE)
    seen = [Version(0, 0, NODE)]
    for event in events:
        if isinstance(event, Version):
            clock.observe(event)
            seen.append(event)
        else:
            version = clock.tick(event)
            assert all(version > earlier for earlier in seen)
            seen.append(version)


@given(st.lists(walls, min_size=1))
def test_a_version_keeps_to_wall_time_when_that_moves_on(times: list[int]) -> None:
    clock = HybridClock(NODE)
    for time in times:
        clock.tick(time)
    assert clock.tick(max(times) + 1) == Version(max(times) + 1, 0, NODE)


def test_a_clock_that_went_back_over_a_restart_hands_out_later_versions() -> None:
    before = HybridClock(NODE).tick(1_000)
    assert HybridClock(NODE, before).tick(10) > before


def test_a_full_counter_moves_into_the_next_millisecond() -> None:
    full = Version(5, 2**31 - 1, NODE)
    assert HybridClock(NODE, full).tick(5) == Version(6, 0, NODE)


def test_nodes_that_write_in_the_same_millisecond_make_different_versions() -> None:
    assert HybridClock(NODE).tick(7) < HybridClock(OTHER).tick(7)
