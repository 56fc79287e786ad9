# SPDX-License-Identifier: Apache-2.0
"""How much a peer may say and ask for in vain."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.model.digest import Digest
from shoal.swarm.floods import (
    FRAMES,
    FRAMES_PER_SECOND,
    OPENS,
    OPENS_PER_SECOND,
    REPEATED_WITHIN,
    REPEATS,
    Flood,
    Floods,
)

BLOB, OTHER = Digest.of(b"one"), Digest.of(b"other")


def borne(call: Callable[[float], None], now: float) -> int:
    """How often something is borne with at one moment."""
    for times in range(10_000):
        try:
            call(now)
        except Flood:
            return times
    raise AssertionError("it is borne without end")


@pytest.mark.parametrize(
    "burst, rate, call",
    [
        (FRAMES, FRAMES_PER_SECOND, Floods.in_vain),
        (OPENS, OPENS_PER_SECOND, Floods.absent),
        (OPENS, OPENS_PER_SECOND, lambda floods, now: floods.opened(BLOB, 9, now)),
    ],
)
def test_so_much_at_once_is_borne_and_then_so_much_per_second(
    burst: int, rate: float, call: Callable[[Floods, float], None]
) -> None:
    floods = Floods()
    floods.opened(BLOB, 9, 0.0)
    assert borne(lambda now: call(floods, now), 0.0) == burst
    assert borne(lambda now: call(floods, now), 2.0) == int(2 * rate)


def test_a_blob_that_was_not_open_before_costs_nothing() -> None:
    floods = Floods()
    for number in range(2 * OPENS):
        floods.opened(Digest.of(str(number).encode()), 9, 0.0)
    floods.absent(0.0)


def test_a_blob_is_given_about_twice_and_again_when_time_has_passed() -> None:
    floods, count = Floods(), 100
    asked = iter(range(10**6))

    def ask(now: float) -> None:
        floods.given(BLOB, count, next(asked) % count, now)

    assert borne(ask, 0.0) == 2 * count + REPEATS
    # Another blob has an account of its own, and this one keeps its own when it is opened again.
    floods.given(OTHER, count, 0, 0.0)
    floods.opened(BLOB, count, 0.0)
    assert borne(ask, 0.0) == 0
    assert borne(ask, REPEATED_WITHIN) == count + REPEATS


def test_an_agent_that_pulls_the_same_blob_every_hour_is_no_flood() -> None:
    floods, count = Floods(), 500
    for hour in range(100):
        floods.opened(BLOB, count, 3600.0 * hour)
        for index in range(count):
            floods.given(BLOB, count, index, 3600.0 * hour)


def test_blobs_without_end_fill_no_memory() -> None:
    floods = Floods()
    for number in range(10_000):
        floods.opened(Digest.of(str(number).encode()), 9, 0.0)
    assert len(floods._given) <= 4096
