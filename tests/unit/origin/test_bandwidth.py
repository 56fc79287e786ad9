# SPDX-License-Identifier: Apache-2.0
"""Background work takes no more bytes per second than it was given, however many do it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.origin.bandwidth import SLICE, Bandwidth
from shoal.origin.config import ScrubConfig
from shoal.origin.local import LocalBlobs
from shoal.origin.scrub import Scrubber
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import metainfo_of

RATE = 1e6


class Clock:
    """Time that passes when somebody sleeps, and not otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        await asyncio.sleep(0)


def limited(clock: Clock, rate: float = RATE) -> Bandwidth:
    return Bandwidth(rate, clock=clock, sleep=clock.sleep)


@given(
    counts=st.lists(st.integers(1, SLICE), min_size=1, max_size=60),
    pauses=st.lists(st.floats(0, 3), max_size=60),
    rate=st.sampled_from([1e5, 1e6, 3e7, 1e9]),
)
def test_in_no_stretch_of_time_do_more_bytes_go(
    counts: list[int], pauses: list[float], rate: float
) -> None:
    clock = Clock()

    async def take_all() -> list[tuple[float, int]]:
        bandwidth = limited(clock, rate)
        went = []
        for number, count in enumerate(counts):
            clock.now += pauses[number] if number < len(pauses) else 0.0
            await bandwidth.take(count)
            went.append((clock.now, count))
        return went

    went = asyncio.run(take_all())
    burst = max(SLICE, rate / 10)
    for first in range(len(went)):
        taken = 0
        for moment, count in went[first:]:
            taken += count
            assert taken <= burst + rate * (moment - went[first][0]) + 1


async def test_many_at_once_share_it_and_each_has_its_turn() -> None:
    clock = Clock()
    bandwidth = limited(clock)
    order: list[int] = []

    async def taker(number: int) -> None:
        for _ in range(5):
            await bandwidth.take(SLICE // 2)
            order.append(number)

    began = clock.now
    await asyncio.gather(*map(taker, range(8)))
    taken = 8 * 5 * (SLICE // 2)
    assert clock.now - began >= (taken - SLICE) / RATE
    assert clock.now - began <= taken / RATE
    # The first one goes on until the burst is spent; from then on it is first come, first served.
    assert sorted(order[3:11]) == list(range(8))


async def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    bandwidth = limited(clock, 0)
    for _ in range(1000):
        await bandwidth.take(SLICE)
    assert clock.now == 1000.0
    assert bandwidth.measured() > 0


async def test_what_goes_is_measured() -> None:
    clock = Clock()
    bandwidth = limited(clock)
    assert bandwidth.measured() == 0
    for _ in range(300):
        await bandwidth.take(100_000)
    assert bandwidth.measured() == pytest.approx(RATE, rel=0.05)
    clock.now += 60
    assert bandwidth.measured() < 1


def test_a_deadline_is_for_the_slowest_of_all_that_share_it() -> None:
    assert Bandwidth(8e6).slowest(4, 4 * SLICE) == 1_000_000
    assert Bandwidth(1e9).slowest(4, 4 * SLICE) == 4 * SLICE
    assert Bandwidth(0).slowest(4, 4 * SLICE) == 4 * SLICE
    assert Bandwidth(1).slowest(4, 4 * SLICE) == 1


async def test_a_scrub_reads_no_faster_than_it_may(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    local = LocalBlobs(store)
    size, blobs, rate = SLICE, 4, 6 * SLICE
    for _ in range(blobs):
        data = os.urandom(size)
        temp = store.temp(Digest.of(data))
        temp.write_bytes(data)
        local.keep(temp, metainfo_of(data))
    scrubber = Scrubber(local, tmp_path / "scrub.json", ScrubConfig(bandwidth=float(rate)))
    began = asyncio.get_running_loop().time()
    try:
        done = await scrubber.scrub()
    finally:
        await scrubber.close()
    took = asyncio.get_running_loop().time() - began
    assert (done.blobs, done.bytes) == (blobs, blobs * size)
    assert took >= (blobs * size - SLICE) / rate
