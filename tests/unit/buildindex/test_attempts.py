# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, StatusCode
from prometheus_client import Counter, Histogram
from structlog.testing import capture_logs

from shoal.buildindex import attempts
from shoal.buildindex.attempts import Effort
from shoal.model.digest import Digest
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound, Rejected
from shoal.web.retrying import RetriesExhausted

WHAT = "manifest download"
DIGEST = Digest.of(b"manifest")
ABSENT = NotFound("GET", "http://o1/", "not there")
QUICK = RetryPolicy(initial=0.001, attempts=3)


class Span(NonRecordingSpan):
    """Notes what is recorded."""

    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)
        self.name = name
        self.attributes = attributes
        self.failed: BaseException | None = None
        self.code = StatusCode.UNSET

    def record_exception(self, exception: BaseException, *_: Any, **__: Any) -> None:
        self.failed = exception

    def set_status(self, status: Any, *_: Any) -> None:
        self.code = status.status_code


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    started: list[Span] = []

    class Tracer:
        @contextmanager
        def start_as_current_span(
            self, name: str, *, attributes: dict[str, Any], **_: Any
        ) -> Iterator[Span]:
            started.append(Span(name, attributes))
            yield started[-1]

    monkeypatch.setattr(attempts, "_tracer", Tracer())
    return started


class Meters:
    def __init__(self) -> None:
        self.outcomes = Counter("outcomes", "?", ["outcome"], registry=None)
        self.attempts = Histogram("attempts", "?", registry=None, buckets=(1, 2, 3))

    def counted(self) -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for metric in self.outcomes.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }


@pytest.fixture
def meters() -> Meters:
    return Meters()


async def spend(
    effort: Effort, meters: Meters, failures: list[Exception], used: int | None = None
) -> str:
    async def attempt(_: Deadline) -> str:
        if failures:
            raise failures.pop(0)
        return "found"

    return await effort.spend(
        attempt,
        what=WHAT,
        digest=DIGEST,
        policy=QUICK,
        used=effort.used_up(WHAT) if used is None else used,
        outcomes=meters.outcomes,
        attempts=meters.attempts,
    )


def effort() -> Effort:
    return Effort("team/app:v1", Deadline.after(10.0), 5.0)


async def test_each_attempt_is_a_span_and_each_retry_a_line(
    spans: list[Span], meters: Meters
) -> None:
    trying = effort()
    with capture_logs() as lines:
        assert await spend(trying, meters, [ABSENT]) == "found"
    assert [span.attributes for span in spans] == [
        {"shoal.tag": "team/app:v1", "shoal.digest": str(DIGEST), "shoal.attempt": number}
        for number in (1, 2)
    ]
    assert [(span.name, span.failed, span.code) for span in spans] == [
        ("manifest download", ABSENT, StatusCode.ERROR),
        ("manifest download", None, StatusCode.UNSET),
    ]
    (line,) = lines
    assert 0 <= line.pop("wait_s") < 0.01
    assert line == {
        "event": "will retry",
        "log_level": "warning",
        "what": "manifest download",
        "tag": "team/app:v1",
        "digest": str(DIGEST),
        "attempt": 1,
        "of": 3,
        "error": str(ABSENT),
    }
    assert (trying.retries, meters.counted()) == (1, {"after_retry": 1})


async def test_outcomes_are_counted_and_will_retry_is_said_only_when_it_is_true(
    meters: Meters,
) -> None:
    refused = Rejected("GET", "http://o1/", "no", status=403)
    with capture_logs() as lines:
        await spend(effort(), meters, [])
        with pytest.raises(RetriesExhausted):
            await spend(effort(), meters, [ABSENT] * 3)
        with pytest.raises(Rejected):
            await spend(effort(), meters, [refused])
    assert meters.counted() == {"first_try": 1, "exhausted": 1, "permanent": 1}
    assert [(line["event"], line.get("attempt", line.get("attempts"))) for line in lines] == [
        ("will retry", 1),
        ("will retry", 2),
        ("gave up", 3),
        ("failed for good, not tried again", 1),
    ]


async def test_a_push_never_waits_longer_than_the_policy_says_however_many_levels_it_has(
    meters: Meters,
) -> None:
    trying = effort()
    await spend(trying, meters, [ABSENT])
    await spend(trying, meters, [ABSENT])
    failures: list[Exception] = [ABSENT, ABSENT]
    with pytest.raises(RetriesExhausted, match="after 1 attempt"):
        await spend(trying, meters, failures)
    # One attempt there always is.
    assert await spend(trying, meters, []) == "found"


async def test_what_is_tried_at_the_same_time_shares_its_waits(meters: Meters) -> None:
    trying = effort()
    several: list[list[Exception]] = [[ABSENT, ABSENT] for _ in range(5)]
    found = await asyncio.gather(*(spend(trying, meters, failures, used=0) for failures in several))
    assert found == ["found"] * 5
    assert trying.used_up(WHAT) == 2


async def test_a_caller_that_leaves_is_no_outcome(meters: Meters) -> None:
    begun = asyncio.Event()

    async def hang(_: Deadline) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        effort().spend(
            hang,
            what=WHAT,
            digest=DIGEST,
            policy=QUICK,
            used=0,
            outcomes=meters.outcomes,
            attempts=meters.attempts,
        )
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert meters.counted() == {}
