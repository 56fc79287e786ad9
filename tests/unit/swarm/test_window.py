# SPDX-License-Identifier: Apache-2.0
"""The window of a reader follows its rate and the time that pieces take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.window import BOUNDS, Window


def reads(window: Window, pieces: int, *, rate: float, latency: float, begin: float = 0.0) -> float:
    """Take pieces one by one; returns when the last one was taken."""
    for number in range(1, pieces + 1):
        window.taken(1, begin + number / rate, latency)
    return begin + pieces / rate


@pytest.mark.parametrize(
    "rate, latency, size",
    [(10.0, 0.1, 16), (50.0, 0.2, 40), (100.0, 0.5, 64), (0.5, 10.0, 20)],
)
def test_it_is_what_the_reader_takes_while_a_piece_passes_over_four_hosts(
    rate: float, latency: float, size: int
) -> None:
    window = Window(0.0)
    reads(window, 200, rate=rate, latency=latency)
    assert window.size == pytest.approx(size, abs=1)


def test_it_narrows_when_the_reader_takes_its_time_and_widens_when_it_hurries_again() -> None:
    window = Window(0.0)
    now = reads(window, 100, rate=100.0, latency=0.16)
    assert window.size == 64
    now = reads(window, 20, rate=5.0, latency=0.16, begin=now)
    assert window.size == 16
    reads(window, 300, rate=100.0, latency=0.16, begin=now)
    assert window.size == 64


def test_a_pause_of_the_reader_counts() -> None:
    window = Window(0.0)
    now = reads(window, 100, rate=100.0, latency=0.16)
    window.taken(1, now + 60.0, 0.16)
    assert window.size < 64


def test_one_burst_is_no_rate_yet() -> None:
    window = Window(0.0)
    before = window.size
    window.taken(1000, 0.01, 1.0)
    assert window.size == before


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e4), st.floats(0, 1e4)), max_size=50)
)
def test_it_stays_within_its_bounds(steps: list[tuple[int, float, float]]) -> None:
    window, now = Window(0.0), 0.0
    for pieces, elapsed, latency in steps:
        now += elapsed
        window.taken(pieces, now, latency)
        assert BOUNDS[0] <= window.size <= BOUNDS[1]
