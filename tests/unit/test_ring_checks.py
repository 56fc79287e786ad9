# SPDX-License-Identifier: Apache-2.0
"""Active health: states change by checks in a row, and every host is checked at its interval."""

from __future__ import annotations

import random
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from shoal.ring.checks import JITTER, Checks

A, B, C = HOSTS = ["a:1", "b:1", "c:1"]


def checks(
    hosts: list[str] | None = None, *, interval: float = 10.0, fails: int = 3, passes: int = 2
) -> Checks:
    made = Checks(interval=interval, fails=fails, passes=passes, rng=random.Random(1))
    made.follow(HOSTS if hosts is None else hosts, now=0.0)
    return made


def note(made: Checks, host: str, *outcomes: bool) -> list[bool]:
    return [(made.passed if outcome else made.failed)(host) for outcome in outcomes]


def test_a_host_is_unhealthy_after_failures_in_a_row_and_healthy_after_passes() -> None:
    made = checks()
    assert note(made, A, False, False) == [False, False]
    assert made.healthy(A)
    assert note(made, A, False) == [True]
    assert not made.healthy(A)
    assert note(made, A, True, False, True) == [False, False, False]
    assert not made.healthy(A)
    assert note(made, A, True) == [True]
    assert made.healthy(A)


def test_a_pass_between_failures_begins_the_count_anew() -> None:
    made = checks()
    note(made, A, False, False, True, False, False)
    assert made.healthy(A)


def test_a_host_alone_is_always_healthy() -> None:
    made = checks([A])
    note(made, A, *[False] * 10)
    assert made.healthy(A)
    made.follow([A, B], now=1.0)
    assert not made.healthy(A)


def test_whoever_is_not_known_is_healthy_and_a_host_that_comes_back_begins_anew() -> None:
    made = checks()
    note(made, A, False, False, False)
    made.follow([B, C], now=1.0)
    assert made.healthy(A)
    assert note(made, A, False) == [False]
    made.follow(HOSTS, now=2.0)
    assert made.healthy(A)


def test_a_host_that_failed_a_call_is_due_at_once_but_not_again_and_again() -> None:
    made = checks()
    while made.due(100.0):
        pass
    made.suspect(B, 101.0)
    assert made.due(101.0) == [B]
    note(made, B, False)
    made.suspect(B, 101.0)
    assert made.due(101.0) == []


@given(
    st.lists(st.tuples(st.sampled_from(HOSTS), st.booleans()), max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_the_state_is_that_of_the_last_long_enough_row(
    outcomes: list[tuple[str, bool]], fails: int, passes: int
) -> None:
    made = checks(fails=fails, passes=passes)
    for host, outcome in outcomes:
        before = made.healthy(host)
        [changed] = note(made, host, outcome)
        assert changed == (made.healthy(host) != before)
    for host in HOSTS:
        state = True
        rows = groupby(outcome for at, outcome in outcomes if at == host)
        for outcome, row in rows:
            if len(list(row)) >= (passes if outcome else fails):
                state = outcome
        assert made.healthy(host) == state


@given(st.integers(2, 100), st.floats(0.1, 60), st.randoms(use_true_random=False))
def test_every_host_is_checked_once_an_interval_and_never_all_at_once(
    count: int, interval: float, rng: random.Random
) -> None:
    hosts = [f"h{n}:1" for n in range(count)]
    made = Checks(interval=interval, fails=3, passes=2, rng=rng)
    made.follow(hosts, now=0.0)
    last = dict.fromkeys(hosts, 0.0)
    made_checks = 0
    rounds = 5
    while (now := made.next_due() or 0.0) < rounds * interval:
        due = made.due(now)
        assert due
        made_checks += len(due)
        for host in due:
            assert now - last[host] <= interval * (1 + JITTER) + 1e-6
            last[host] = now
    assert made_checks <= count * (rounds / (1 - JITTER) + 1)
