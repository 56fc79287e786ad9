# SPDX-License-Identifier: Apache-2.0
"""Tasks of a durable queue, and what becomes of one that failed. Pure: the clock is a parameter."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum

from shoal.queue.retry import RetryPolicy

MAX_ERROR = 2000
"""Characters of an error that are kept with its task."""


class State(StrEnum):
    """Where a task stands. One that is done has no row any more."""

    WAITING = "waiting"
    """To be tried when it is due."""
    RUNNING = "running"
    """A worker has it."""
    DEAD = "dead"
    """Given up, and kept: an operator retries or drops it."""
    DROPPED = "dropped"
    """An operator dropped it; the service removes it, and what belongs to it, when it sees that."""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work. Times are seconds of the epoch, so that they outlive the process."""

    id: int
    key: str
    """What the work is about; a queue has one task per key."""
    payload: str
    """What the worker needs beyond the key; the queue does not read it."""
    state: State
    added: float
    due: float
    attempted: float | None = None
    failures: int = 0
    error: str = ""
    """Why the last attempt failed."""

    def age(self, now: float) -> float:
        """Seconds since it was added, never below 0: clocks are set back."""
        return max(0.0, now - self.added)


class Hopeless(Exception):
    """Raised by the work itself: another attempt cannot succeed; the task is dead at once."""


class Postponed(Exception):
    """Raised by the work itself: it is not time yet. That is no failure."""

    def __init__(self, why: str, wait: float) -> None:
        """`wait`: seconds until the next attempt."""
        super().__init__(why)
        self.wait = wait


def after_postponement(task: Task, postponed: Postponed, *, now: float) -> Task:
    """The task as it waits for its time."""
    why = str(postponed)[:MAX_ERROR]
    return replace(task, state=State.WAITING, error=why, due=now + postponed.wait)


def after_failure(
    task: Task,
    error: str,
    *,
    now: float,
    policy: RetryPolicy,
    dead_after: float,
    rng: random.Random,
    after: float | None = None,
    hopeless: bool = False,
) -> Task:
    """The task after an attempt that failed: waiting for the next one, or dead.

    It is dead when it is hopeless, or was tried `policy.attempts` times and has been in the queue
    for `dead_after` seconds: a service that was down for long does not give up at its first try.
    `after` is how many seconds the other side asked to be left alone.
    """
    failures = task.failures + 1
    failed = replace(task, failures=failures, error=error[:MAX_ERROR])
    if hopeless or (failures >= policy.attempts and task.age(now) >= dead_after):
        return replace(failed, state=State.DEAD, due=now)
    return replace(failed, state=State.WAITING, due=now + policy.wait(failures, rng, after))
