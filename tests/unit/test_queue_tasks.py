# SPDX-License-Identifier: Apache-2.0
"""What becomes of a task that failed: when it is tried again, and when it is given up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.queue.retry import RetryPolicy
from shoal.queue.tasks import MAX_ERROR, State, Task, after_failure

DAY = 86400.0
POLICY = RetryPolicy(initial=0.5, factor=2, jitter=0.05, cap=60)


def task(*, added: float = 0.0, failures: int = 0) -> Task:
    return Task(1, "key", "{}", State.RUNNING, added, added, failures=failures)


def fail(
    one: Task,
    now: float,
    *,
    policy: RetryPolicy = POLICY,
    dead_after: float = 7 * DAY,
    seed: int = 0,
    after: float | None = None,
    hopeless: bool = False,
) -> Task:
    return after_failure(
        one,
        "refused",
        now=now,
        policy=policy,
        dead_after=dead_after,
        rng=random.Random(seed),
        after=after,
        hopeless=hopeless,
    )


@given(
    failures=st.integers(0, 10_000),
    now=st.floats(0, 7 * DAY, exclude_max=True),
    seed=st.integers(),
    policy=st.builds(
        RetryPolicy,
        initial=st.floats(0.001, 100),
        factor=st.floats(1, 10),
        jitter=st.floats(0, 0.99),
        cap=st.floats(0.001, 3600),
    ),
)
def test_the_wait_lies_within_the_policy_and_never_ends_the_task(
    failures: int, now: float, seed: int, policy: RetryPolicy
) -> None:
    failed = fail(task(failures=failures), now, policy=policy, seed=seed)
    assert (failed.state, failed.failures) == (State.WAITING, failures + 1)
    shortest = min(policy.initial, policy.cap) * (1 - policy.jitter)
    longest = policy.cap * (1 + policy.jitter)
    assert shortest - 1e-6 <= failed.due - now <= longest + 1e-6


@given(st.lists(st.integers(), min_size=2, max_size=2, unique=True))
def test_waits_spread(seeds: list[int]) -> None:
    assert len({fail(task(), 1, seed=seed).due for seed in seeds}) == 2


def test_waits_grow_up_to_the_cap() -> None:
    even = RetryPolicy(initial=0.5, factor=2, jitter=0, cap=60)
    waits = [fail(task(failures=n), 0, policy=even).due for n in range(10)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_other_sides_wish_is_respected() -> None:
    assert fail(task(), 100, after=30).due == 130


def test_it_is_given_up_when_it_is_old_and_was_tried_often_enough() -> None:
    assert fail(task(failures=50), 7 * DAY).state is State.DEAD
    # A service that was down for a month still tries.
    assert fail(task(failures=0), 30 * DAY).state is State.WAITING
    assert fail(task(failures=3), 30 * DAY).state is State.DEAD


def test_what_is_hopeless_is_given_up_at_once() -> None:
    assert fail(task(), 1, hopeless=True).state is State.DEAD


def test_a_clock_that_was_set_back_gives_nothing_up() -> None:
    one = task(added=100 * DAY, failures=100)
    assert one.age(now=50 * DAY) == 0
    assert fail(one, 50 * DAY).state is State.WAITING


@pytest.mark.parametrize("length", [0, 10, 100_000])
def test_long_errors_are_cut(length: int) -> None:
    failed = after_failure(
        task(), "x" * length, now=0, policy=POLICY, dead_after=1, rng=random.Random()
    )
    assert len(failed.error) == min(length, MAX_ERROR)
