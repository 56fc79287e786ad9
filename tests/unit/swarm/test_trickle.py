# SPDX-License-Identifier: Apache-2.0
"""Who sends next to nothing is noticed in a second, and given up in a few."""

from __future__ import annotations

import pytest

from shoal.swarm.trickle import FLOOR, Trickle


def watch(
    trickle: Trickle, rate: float, seconds: float, *, start: float = 0.0
) -> tuple[float, ...]:
    """When it was noticed, and when it was hopeless; infinity for never."""
    noticed = hopeless = float("inf")
    for tick in range(int(seconds * 10)):
        now = start + tick / 10
        if trickle.noticed(now):
            noticed = min(noticed, now - start)
        if trickle.hopeless(now):
            hopeless = min(hopeless, now - start)
        trickle.came(int(rate / 10))
    return noticed, hopeless


@pytest.mark.parametrize("rate", [10, 1000, FLOOR / 2])
def test_a_peer_that_trickles_is_noticed_and_then_given_up(rate: float) -> None:
    noticed, hopeless = watch(Trickle(4.0), rate, 6.0)
    assert noticed == pytest.approx(1.0, abs=0.15)
    assert hopeless == pytest.approx(4.0, abs=0.15)


@pytest.mark.parametrize("rate", [2 * FLOOR, 10 * FLOOR, 1e9])
def test_a_peer_that_is_merely_slow_is_left_alone(rate: float) -> None:
    assert watch(Trickle(4.0), rate, 20.0) == (float("inf"), float("inf"))


def test_a_quick_start_does_not_excuse_what_follows() -> None:
    trickle = Trickle(4.0)
    watch(trickle, 1e8, 2.0)
    noticed, hopeless = watch(trickle, 100, 8.0, start=2.0)
    assert noticed < 1.5
    assert hopeless < 4.5


def test_time_in_which_nothing_is_due_does_not_count() -> None:
    trickle = Trickle(4.0)
    for second in range(20):
        assert watch(trickle, 100, 0.9, start=float(second)) == (float("inf"), float("inf"))
        trickle.rest()


def test_silence_is_not_its_business() -> None:
    assert watch(Trickle(4.0), 0, 20.0) == (float("inf"), float("inf"))
