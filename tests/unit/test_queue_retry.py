# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shoal.queue.retry import LONGEST_AFTER, RetryPolicy

policies = st.builds(
    RetryPolicy,
    initial=st.floats(0, 60),
    factor=st.floats(1, 10),
    jitter=st.floats(0, 0.99),
    cap=st.floats(0, 120),
    attempts=st.integers(1, 50),
)
generators = st.integers().map(random.Random)


def steady(policy: RetryPolicy) -> RetryPolicy:
    return policy.model_copy(update={"jitter": 0.0})


def test_the_defaults_wait_three_and_a_half_seconds_in_four_attempts() -> None:
    policy = RetryPolicy(jitter=0)
    waits = [policy.wait(failures, random.Random()) for failures in range(1, policy.attempts)]
    assert waits == [0.5, 1.0, 2.0]
    assert policy.longest() == 3.5
    assert RetryPolicy().longest() == pytest.approx(3.5 * 1.05)


@given(policies, generators, st.integers(1, 10_000))
def test_a_wait_is_within_the_jitter(
    policy: RetryPolicy, rng: random.Random, failures: int
) -> None:
    middle = steady(policy).wait(failures, rng)
    wait = policy.wait(failures, rng)
    tolerance = 1e-9 * middle
    assert middle * (1 - policy.jitter) - tolerance <= wait
    assert wait <= middle * (1 + policy.jitter) + tolerance


@given(policies, generators)
def test_without_jitter_waits_grow_up_to_the_cap(policy: RetryPolicy, rng: random.Random) -> None:
    waits = [steady(policy).wait(failures, rng) for failures in range(1, 40)]
    assert waits == sorted(waits)
    assert all(wait <= policy.cap for wait in waits)


@given(policies, generators)
def test_all_waits_together_are_never_longer_than_announced(
    policy: RetryPolicy, rng: random.Random
) -> None:
    waited = sum(policy.wait(failures, rng) for failures in range(1, policy.attempts))
    assert waited <= policy.longest() * (1 + 1e-9)


@given(policies, generators, st.integers(1, 100), st.floats(0, 1e7))
def test_what_the_other_side_asks_for_is_waited_for(
    policy: RetryPolicy, rng: random.Random, failures: int, after: float
) -> None:
    assert policy.wait(failures, rng, after) >= min(after, LONGEST_AFTER)
    assert policy.wait(failures, rng, after) <= max(
        steady(policy).wait(failures, rng) * (1 + policy.jitter) * (1 + 1e-9),
        min(after, LONGEST_AFTER),
    )


def test_a_policy_of_one_attempt_waits_for_nothing() -> None:
    assert RetryPolicy(attempts=1).longest() == 0


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"factor": 0.5}, {"jitter": 1}, {"initial": -1}, {"cap": -1}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RetryPolicy.model_validate(wrong)
