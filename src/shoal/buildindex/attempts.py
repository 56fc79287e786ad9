# SPDX-License-Identifier: Apache-2.0
"""Attempts of the resolver: tried again under a policy, traced, logged and counted."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from prometheus_client import Counter, Histogram

from shoal.buildindex.metrics import Outcome, count
from shoal.model.digest import Digest
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.retrying import RetriesExhausted, Retry, retrying

T = TypeVar("T")

log = structlog.get_logger()
_tracer = trace.get_tracer("shoal.buildindex")


@dataclass(slots=True)
class Effort:
    """How much trying the resolution of one push takes."""

    name: str
    """``repository:tag`` or ``repository@digest``, for logs and traces."""

    deadline: Deadline
    attempt_timeout: float
    rng: random.Random = field(default_factory=random.Random)
    retries: int = 0
    """Retries so far, of all that was tried."""

    _used: dict[str, int] = field(default_factory=dict, init=False)
    """The retries of a policy that are used up, by what they were for."""

    def used_up(self, what: str) -> int:
        """The retries of a policy that are used up.

        All that is called `what` shares them, so that a push with many levels waits no longer than
        one with a single level; what is tried at the same time shares the waits, too.
        """
        return self._used.get(what, 0)

    async def spend(
        self,
        attempt: Callable[[Deadline], Awaitable[T]],
        *,
        what: str,
        digest: Digest,
        policy: RetryPolicy,
        used: int,
        outcomes: Counter,
        attempts: Histogram,
    ) -> T:
        """Try until it succeeds, as `retrying`, which says what is raised.

        `used` is what `used_up` said when this began, or the batch of which it is a part. Each
        attempt is a span, each retry a line of the log; the outcome is counted.
        """
        made = 0
        left = max(1, policy.attempts - used)

        async def traced(deadline: Deadline) -> T:
            nonlocal made
            made += 1
            with _tracer.start_as_current_span(
                what,
                attributes={
                    "shoal.tag": self.name,
                    "shoal.digest": str(digest),
                    "shoal.attempt": made,
                },
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    return await attempt(deadline)
                except Exception as error:
                    span.record_exception(error)
                    span.set_status(Status(StatusCode.ERROR, str(error)))
                    raise

        def note(retry: Retry) -> None:
            self.retries += 1
            self._used[what] = max(self._used.get(what, 0), used + retry.attempt)
            log.warning(
                "will retry",
                what=what,
                tag=self.name,
                digest=str(digest),
                attempt=retry.attempt,
                of=left,
                wait_s=round(retry.wait, 3),
                error=str(retry.error),
            )

        outcome: Outcome | None = None
        try:
            result = await retrying(
                traced,
                policy=policy.model_copy(update={"attempts": left}),
                deadline=self.deadline,
                rng=self.rng,
                on_retry=note,
                attempt_timeout=self.attempt_timeout,
            )
            outcome = "first_try" if made == 1 else "after_retry"
            return result
        except RetriesExhausted as exhausted:
            outcome = "exhausted"
            log.warning(
                "gave up",
                what=what,
                tag=self.name,
                digest=str(digest),
                attempts=exhausted.attempts,
                seconds=round(exhausted.seconds, 3),
                error=str(exhausted.last),
            )
            raise
        except Exception as error:
            outcome = "permanent"
            log.warning(
                "failed for good, not tried again",
                what=what,
                tag=self.name,
                digest=str(digest),
                attempts=made,
                error=str(error),
            )
            raise
        finally:
            # Nothing is counted when the caller left in the middle.
            if outcome is not None:
                count(outcomes, attempts, outcome, made)
