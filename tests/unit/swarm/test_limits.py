# SPDX-License-Identifier: Apache-2.0
"""Rate limits keep their rate over time, and are shared as promised. No sleeping: virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.limits import Bucket, Limiter, Share

RATE = 10_000_000.0
FOREVER = 1 << 40


def run(
    limiter: Limiter, flows: dict[Hashable, Share], seconds: float, *, step: float = 0.001
) -> Counter[Hashable]:
    """All flows take whatever they get for so long; the bytes of each."""
    got: Counter[Hashable] = Counter()

    def go_on(flow: Hashable, granted: int, now: float) -> None:
        while granted:
            got[flow] += granted
            granted = limiter.take(flow, flows[flow], FOREVER, now)

    now = 0.0
    for flow, share in flows.items():
        go_on(flow, limiter.take(flow, share, FOREVER, now), now)
    while now < seconds:
        while (turn := limiter.next(now)) is not None:
            go_on(*turn, now)
        delay = limiter.delay(now)
        assert delay is not None
        now += max(step, delay)
    return got


@pytest.mark.parametrize("rate", [50_000.0, 1_000_000.0, 12_500_000.0, 1_000_000_000.0])
@pytest.mark.parametrize("flows", [1, 7])
def test_the_rate_is_kept_to_and_used_up(rate: float, flows: int) -> None:
    got = run(Limiter(rate, 0), {i: Share(i % 3) for i in range(flows)}, 20.0)
    assert got.total() == pytest.approx(20 * rate, rel=0.04)


def test_each_blob_has_its_own_limit_within_the_limit_of_all() -> None:
    flows: dict[Hashable, Share] = {i: Share(i) for i in range(3)}
    got = run(Limiter(RATE, RATE / 5), flows, 10.0)
    for flow in flows:
        assert got[flow] == pytest.approx(10 * RATE / 5, rel=0.03)


def test_a_blob_with_many_connections_gets_no_more_than_one_with_few() -> None:
    flows: dict[Hashable, Share] = {i: Share("crowded") for i in range(9)}
    flows["one"] = Share("lonely")
    got = run(Limiter(RATE, 0), flows, 10.0)
    assert got["one"] == pytest.approx(5 * RATE, rel=0.05)
    assert max(got[i] for i in range(9)) < 1.2 * min(got[i] for i in range(9))


def test_small_blobs_go_first_and_do_not_stop_the_others() -> None:
    flows: dict[Hashable, Share] = {
        "small": Share("config", small=True),
        "large": Share("layer"),
    }
    got = run(Limiter(RATE, 0), flows, 10.0)
    assert got["small"] == pytest.approx(7.5 * RATE, rel=0.05)
    assert got["large"] == pytest.approx(2.5 * RATE, rel=0.05)


def test_a_blob_at_its_own_limit_does_not_hold_up_others() -> None:
    limiter = Limiter(0, 1000.0)
    slow, other = Share("slow"), Share("other")
    while limiter.take("a", slow, FOREVER, 0.0):
        pass
    limiter.take("b", other, FOREVER, 0.0)
    # It came after one that waits, so it waited, too; but its turn comes at once.
    assert limiter.next(0.0) == ("b", 16 * 1024)
    assert limiter.next(0.0) is None


def test_who_has_left_gets_nothing() -> None:
    limiter = Limiter(1000.0, 0)
    share = Share("blob")
    while limiter.take("a", share, FOREVER, 0.0):
        pass
    limiter.take("b", share, FOREVER, 0.0)
    limiter.leave("a")
    assert limiter.next(60.0) == ("b", 16 * 1024)
    assert limiter.delay(60.0) is None


def test_what_is_given_back_can_be_had_at_once() -> None:
    limiter = Limiter(1000.0, 1000.0)
    share = Share("blob")
    first = limiter.take("a", share, FOREVER, 0.0)
    while limiter.take("a", share, FOREVER, 0.0):
        pass
    limiter.leave("a")
    limiter.give_back(share, first)
    assert limiter.take("b", share, FOREVER, 0.0) == first


def test_blobs_that_are_idle_are_forgotten() -> None:
    limiter = Limiter(0, 1000.0)
    for number in range(10_000):
        assert limiter.take("flow", Share(number), 10, float(number))
    assert len(limiter._blobs) <= 65


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 100_000)), max_size=50))
def test_a_bucket_never_gives_more_than_its_rate_and_its_burst(
    takes: list[tuple[float, int]],
) -> None:
    bucket, now, taken = Bucket(1000.0, 500.0), 0.0, 0
    for pause, count in takes:
        now += pause
        if bucket.wait(count, now) == 0:
            bucket.take(count, now)
            taken += count
        assert taken <= 500.0 + 1000.0 * now + 1e-6
