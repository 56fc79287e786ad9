# SPDX-License-Identifier: Apache-2.0
"""Try again what failed and may succeed, within the policy and the caller's deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from shoal.model.errors import Unavailable
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.failures import Again, retry_after

SHORTEST_ATTEMPT = 0.05
"""Seconds that must be left for an attempt, or it does not begin."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """An attempt failed, and another one follows."""

    attempt: int
    """The number of the attempt that failed, from 1."""

    wait: float
    """Seconds until the next one begins."""

    error: Exception


class RetriesExhausted(Unavailable):
    """What was tried again kept failing until the policy or the deadline ended it.

    ``__cause__`` is the last failure. Rendered as it is, it is a 503 whose message says what was
    tried, how often and for how long.
    """

    def __init__(self, failures: list[Exception], seconds: float, after: float | None) -> None:
        super().__init__(
            f"{_said(failures[-1])} ({spent(len(failures), seconds)})",
            retry_after=max(1, round(after or 1)),
        )
        self.failures = tuple(failures)
        self.seconds = seconds

    @property
    def attempts(self) -> int:
        """How many attempts were made."""
        return len(self.failures)

    @property
    def last(self) -> Exception:
        """The failure of the last attempt."""
        return self.failures[-1]


async def retrying(
    attempt: Callable[[Deadline], Awaitable[T]],
    *,
    policy: RetryPolicy,
    deadline: Deadline,
    rng: random.Random,
    on_retry: Callable[[Retry], None] = lambda _: None,
    attempt_timeout: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Call `attempt` until it succeeds; return what it returns.

    Each attempt gets its own deadline, the caller's or `attempt_timeout` seconds from its start,
    and is ended when that has passed. An attempt that could not end within the caller's deadline
    does not begin. `on_retry` is called before each wait, and only when another attempt follows it.
    Raises a permanent failure as it is, at once, and `RetriesExhausted` from the last other one.
    """
    started = clock()
    failures: list[Exception] = []
    while True:
        try:
            return await _once(attempt, deadline, attempt_timeout, clock)
        except Exception as error:
            again = retry_after(error)
            if again is None:
                raise
            failures.append(error)
            wait = _next_wait(policy, failures, rng, again, deadline.remaining(clock()))
            if wait is None:
                raise RetriesExhausted(failures, clock() - started, again.after) from error
            on_retry(Retry(len(failures), wait, error))
        await sleep(wait)


async def _once(
    attempt: Callable[[Deadline], Awaitable[T]],
    deadline: Deadline,
    attempt_timeout: float | None,
    clock: Callable[[], float],
) -> T:
    own = deadline if attempt_timeout is None else deadline.at_most(attempt_timeout, clock())
    seconds = own.remaining(clock())
    try:
        async with asyncio.timeout(seconds):
            return await attempt(own)
    except TimeoutError as error:
        if str(error):
            raise
        raise TimeoutError(f"not done within {seconds:.1f} s") from error


def _next_wait(
    policy: RetryPolicy,
    failures: list[Exception],
    rng: random.Random,
    again: Again,
    remaining: float,
) -> float | None:
    if len(failures) >= policy.attempts:
        return None
    wait = policy.wait(len(failures), rng, again.after)
    return wait if wait + SHORTEST_ATTEMPT <= remaining else None


def spent(attempts: int, seconds: float) -> str:
    """``after 3 attempts in 1.6 s``."""
    return f"after {attempts} attempt{'' if attempts == 1 else 's'} in {seconds:.1f} s"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


__all__ = ["SHORTEST_ATTEMPT", "RetriesExhausted", "Retry", "retrying", "spent"]
