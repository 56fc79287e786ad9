# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.errors import BadRequest, ManifestInvalid, Unavailable
from shoal.model.manifest import InvalidManifest
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.failures import (
    Again,
    CallFailed,
    NotFound,
    Overloaded,
    Rejected,
    Unreachable,
    combined,
    retry_after,
)
from shoal.web.retrying import SHORTEST_ATTEMPT, RetriesExhausted, Retry, retrying

CALL = ("GET", "http://origin/blob")
ABSENT = NotFound(*CALL, "not there", status=404)
DOWN = Unreachable(*CALL, "connection refused")
BUSY = Overloaded(*CALL, "busy", status=503, retry_after=7.0)
REFUSED = Rejected(*CALL, "who are you?", status=401)


def overloaded(status: int, after: float | None = None) -> CallFailed:
    return Overloaded(*CALL, "no", status=status, retry_after=after)


@pytest.mark.parametrize(
    "error, again",
    [
        (ABSENT, Again()),
        (DOWN, Again()),
        (TimeoutError(), Again()),
        (ConnectionResetError(), Again()),
        (overloaded(429, 3.0), Again(3.0)),
        (overloaded(500), Again()),
        (overloaded(503, 2.0), Again(2.0)),
        (Overloaded(*CALL, "no"), Again()),
        (Rejected(*CALL, "slow", status=408), Again()),
        (Unavailable("full", retry_after=5), Again(5.0)),
        *[
            (Rejected(*CALL, "no", status=status), None)
            for status in (400, 401, 403, 405, 409, 416)
        ],
        (BadRequest("what?"), None),
        (ManifestInvalid("not a manifest"), None),
        (InvalidManifest("not a manifest"), None),
        (ValueError("a defect"), None),
        (OSError("disk"), None),
        (asyncio.CancelledError(), None),
    ],
)
def test_one_function_says_what_is_worth_another_try(
    error: BaseException, again: Again | None
) -> None:
    assert retry_after(error) == again


def test_a_failure_of_several_hosts_is_permanent_only_when_all_of_them_are() -> None:
    refused = combined(*CALL, "nobody", [REFUSED, REFUSED])
    assert (type(refused), refused.status, retry_after(refused)) == (Rejected, 401, None)
    mixed = combined(*CALL, "nobody", [REFUSED, BUSY])
    assert (type(mixed), retry_after(mixed)) == (Unreachable, Again(7.0))
    assert retry_after(combined(*CALL, "nobody", [BUSY, ABSENT])) == Again()
    assert retry_after(combined(*CALL, "nobody", [BUSY, overloaded(429, 3.0)])) == Again(3.0)


@dataclass
class Script:
    """Attempts that fail as scripted, on a clock that jumps over waits."""

    failures: list[Exception]
    takes: float = 0.0
    now: float = 0.0
    waits: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)

    async def attempt(self, _: Deadline) -> str:
        self.begun.append(self.now)
        self.now += self.takes
        if len(self.begun) <= len(self.failures):
            raise self.failures[len(self.begun) - 1]
        return "done"

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def run(self, policy: RetryPolicy, within: float = 60.0, seed: int = 0) -> str:
        return await retrying(
            self.attempt,
            policy=policy,
            deadline=Deadline(within),
            rng=random.Random(seed),
            on_retry=self.retries.append,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


STEADY = RetryPolicy(jitter=0)


async def test_it_tries_until_it_succeeds() -> None:
    script = Script([ABSENT, DOWN, ABSENT])
    assert await script.run(STEADY) == "done"
    assert script.begun == [0.0, 0.5, 1.5, 3.5]
    assert [(retry.attempt, retry.wait, retry.error) for retry in script.retries] == [
        (1, 0.5, ABSENT),
        (2, 1.0, DOWN),
        (3, 2.0, ABSENT),
    ]


async def test_giving_up_says_how_often_and_for_how_long_and_keeps_the_cause() -> None:
    script = Script([ABSENT, DOWN, BUSY], takes=0.04)
    with pytest.raises(RetriesExhausted) as caught:
        await script.run(RetryPolicy(jitter=0, attempts=3))
    assert str(caught.value).endswith("answered 503: busy (after 3 attempts in 1.6 s)")
    assert caught.value.__cause__ is BUSY
    assert caught.value.failures == (ABSENT, DOWN, BUSY)
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "7"})
    # "Will retry" is said only when it is true: not after the last attempt.
    assert [retry.attempt for retry in script.retries] == [1, 2]


@pytest.mark.parametrize("error", [REFUSED, ManifestInvalid("no"), ValueError("a defect")])
async def test_a_permanent_failure_is_raised_as_it_is_at_once(error: Exception) -> None:
    script = Script([error])
    with pytest.raises(type(error)) as caught:
        await script.run(STEADY)
    assert caught.value is error
    assert (len(script.begun), script.waits, script.retries) == (1, [], [])


async def test_retry_after_is_honoured() -> None:
    script = Script([BUSY])
    await script.run(STEADY)
    assert script.waits == [7.0]


async def test_a_retry_after_beyond_the_deadline_ends_it_at_once() -> None:
    script = Script([BUSY])
    with pytest.raises(RetriesExhausted, match=r"after 1 attempt in 0\.0 s"):
        await script.run(STEADY, within=5.0)
    assert (script.waits, script.retries) == ([], [])


async def test_an_attempt_that_hangs_is_ended_and_tried_again() -> None:
    attempts = 0

    async def hang_once(_: Deadline) -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.Event().wait()
        return "done"

    retries: list[Retry] = []
    answer = await retrying(
        hang_once,
        policy=RetryPolicy(initial=0.001),
        deadline=Deadline.after(10.0),
        rng=random.Random(),
        on_retry=retries.append,
        attempt_timeout=0.1,
    )
    assert answer == "done"
    assert str(retries[0].error) == "not done within 0.1 s"


async def test_a_caller_that_leaves_ends_the_retries() -> None:
    """Nobody retries for a caller that is gone."""
    waiting = asyncio.Event()
    attempts = 0

    async def fail(_: Deadline) -> None:
        nonlocal attempts
        attempts += 1
        raise DOWN

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        retrying(
            fail,
            policy=STEADY,
            deadline=Deadline.after(10.0),
            rng=random.Random(),
            sleep=sleep,
        )
    )
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempts == 1


policies = st.builds(
    RetryPolicy,
    initial=st.floats(0, 10),
    factor=st.floats(1, 4),
    jitter=st.floats(0, 0.5),
    cap=st.floats(0, 20),
    attempts=st.integers(1, 12),
)
errors: st.SearchStrategy[Exception] = st.one_of(
    st.sampled_from([ABSENT, DOWN]),
    st.builds(overloaded, st.sampled_from([429, 500, 503]), st.none() | st.floats(0, 30)),
)


@given(
    policies,
    st.lists(errors, max_size=15),
    st.floats(0.1, 60),
    st.floats(0, 5),
    st.integers(),
)
def test_no_attempt_begins_that_cannot_end_within_the_deadline(
    policy: RetryPolicy, failures: list[Exception], within: float, takes: float, seed: int
) -> None:
    script = Script(failures, takes=takes)
    done = False
    with suppress(RetriesExhausted):
        done = asyncio.run(script.run(policy, within=within, seed=seed)) == "done"
    assert done == (len(script.begun) == len(failures) + 1)
    assert len(script.begun) <= policy.attempts
    assert all(begun <= within - SHORTEST_ATTEMPT + 1e-6 for begun in script.begun[1:])
    assert len(script.retries) == len(script.begun) - 1
    asked = [chance.after for chance in map(retry_after, failures) if chance is not None]
    for number, (wait, after) in enumerate(zip(script.waits, asked, strict=False), 1):
        middle = policy.model_copy(update={"jitter": 0}).wait(number, random.Random())
        assert wait >= max(middle * (1 - policy.jitter), after or 0) - 1e-6
        assert wait <= max(middle * (1 + policy.jitter), after or 0) + 1e-6
