# SPDX-License-Identifier: Apache-2.0
"""For how long a registry is left alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from shoal.backend.rate_limit import LONGEST, MOST, Quota, RateLimit

TODAY = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def asked(status: int, **headers: str) -> float | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RateLimit().observe(status, named, 0.0, TODAY)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "value, seconds",
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("31536000", LONGEST),
        ("Mon, 01 Mar 2027 12:00:00 GMT", LONGEST),
    ],
)
def test_retry_after_is_honoured_within_bounds(status: int, value: str, seconds: float) -> None:
    assert asked(status, Retry_After=value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-5",
        "1e9",
        "7 s",
        "9" * 400,
        f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT",
        f"Mon, 01 Jan 2027 00:00:00 +{'9' * 20}",
    ],
)
def test_a_retry_after_without_sense_is_as_none(value: str) -> None:
    assert asked(503, Retry_After=value) is None
    assert asked(429, Retry_After=value) == 2.0


def test_answers_that_ask_for_nothing_leave_the_registry_usable() -> None:
    limit = RateLimit()
    for status in (200, 404, 401, 500, 503):
        assert limit.observe(status, {"RateLimit-Remaining": "5"}, 0.0) is None
    assert limit.wait(0.0) == 0


def test_the_wait_is_counted_from_the_answer_and_never_shortened() -> None:
    limit = RateLimit()
    limit.observe(429, {"Retry-After": "30"}, 100.0)
    assert limit.wait(110.0) == 20
    limit.observe(429, {"Retry-After": "1"}, 110.0)
    assert limit.wait(110.0) == 20
    assert limit.wait(130.0) == 0


def test_refusals_that_name_no_time_wait_longer_each_time_until_one_succeeds() -> None:
    limit = RateLimit()
    waits = [limit.observe(429, {}, 0.0) for _ in range(9)]
    assert waits == [2, 4, 8, 16, 32, 64, MOST, MOST, MOST]
    limit.observe(200, {}, 0.0)
    assert limit.observe(429, {}, 0.0) == 2


def test_docker_hubs_window_says_when_the_next_request_is_free() -> None:
    limit = RateLimit()
    headers = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "0;w=21600"}
    assert limit.observe(200, headers, 0.0) is None
    assert limit.quota == Quota(100, 0, 21600.0)
    assert limit.observe(429, {}, 0.0) == 216


def test_an_exhausted_quota_with_its_reset_is_kept_to() -> None:
    assert asked(200, RateLimit_Remaining="0", RateLimit_Reset="42") == 42
    assert asked(200, RateLimit_Remaining="1", RateLimit_Reset="42") is None


def test_a_quota_of_nothing_does_not_divide() -> None:
    assert asked(429, RateLimit_Limit="0;w=60", RateLimit_Remaining="0") == 2
