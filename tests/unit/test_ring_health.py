# SPDX-License-Identifier: Apache-2.0
"""Passive health orders hosts and never drops one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.ring.health import Health

HOSTS = ["a:1", "b:1", "c:1"]
events = st.lists(st.tuples(st.sampled_from(HOSTS), st.booleans(), st.floats(0, 100)), max_size=20)


def test_hosts_without_failures_keep_their_order() -> None:
    assert Health().order(HOSTS, now=0.0) == HOSTS


def test_a_host_that_failed_goes_last() -> None:
    health = Health()
    health.failed("a:1", now=0.0)
    assert health.order(HOSTS, now=1.0) == ["b:1", "c:1", "a:1"]


def test_the_latest_failure_is_the_very_last() -> None:
    health = Health()
    health.failed("b:1", now=2.0)
    health.failed("a:1", now=1.0)
    assert health.order(HOSTS, now=3.0) == ["c:1", "a:1", "b:1"]


def test_a_failure_is_forgotten_with_time() -> None:
    health = Health(remembered=10.0)
    health.failed("a:1", now=0.0)
    assert health.order(HOSTS, now=9.9)[-1] == "a:1"
    assert health.order(HOSTS, now=10.0) == HOSTS


def test_an_answer_forgets_the_failure() -> None:
    health = Health()
    health.failed("a:1", now=0.0)
    health.ok("a:1", now=1.0)
    assert health.order(HOSTS, now=2.0) == HOSTS


def test_an_answer_from_before_the_failure_does_not_count() -> None:
    health = Health()
    health.failed("a:1", now=2.0)
    health.ok("a:1", now=1.0)
    assert health.order(HOSTS, now=3.0)[-1] == "a:1"


@given(events, st.floats(0, 200))
def test_no_host_is_ever_dropped(history: list[tuple[str, bool, float]], now: float) -> None:
    health = Health()
    for host, fine, moment in history:
        (health.ok if fine else health.failed)(host, moment)
    assert sorted(health.order(HOSTS, now)) == HOSTS
