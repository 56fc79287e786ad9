# SPDX-License-Identifier: Apache-2.0
"""The limit of a backend, on a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.backend.bandwidth import LimitedBackend, Meter
from shoal.backend.base import Backend, BlobName, Source
from shoal.backend.config import MemoryBackendConfig
from shoal.backend.object_stores import open_memory
from shoal.model.digest import Digest
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(
    chunks=st.lists(st.integers(1, 1024 * 1024), min_size=1, max_size=60),
    rate=st.floats(1e5, 1e9),
)
async def test_a_blob_of_any_size_keeps_to_the_rate(chunks: list[int], rate: float) -> None:
    clock = Clock()
    meter = Meter(rate, clock=clock, sleep=clock.sleep)
    for chunk in chunks:
        await meter.spend(chunk)
    took = clock.now - 100.0
    # A quarter of a second's bytes were saved up; nothing else goes faster, and nothing is lost.
    assert took * rate >= sum(chunks) - 0.25 * rate - 1
    assert took * rate <= sum(chunks) + 1


async def test_a_blob_larger_than_what_is_saved_up_is_not_let_through() -> None:
    clock = Clock()
    meter = Meter(1000, clock=clock, sleep=clock.sleep)
    await meter.spend(100_000)
    assert clock.now - 100.0 >= 99


async def test_waiting_for_the_rate_does_not_use_up_the_deadline() -> None:
    meter = Meter(1_000_000)
    inner = open_memory(MemoryBackendConfig(kind="memory"))
    limited = LimitedBackend(inner, read=Meter(0), write=meter)
    content = bytes(800_000)
    name = BlobName("a", Digest.of(content))
    await meter.spend(250_000)  # what is saved up
    await limited.put(name, content, deadline=Deadline.after(0.3))
    assert await inner.stat(name, deadline=Deadline.after(10)) == 800_000


async def test_a_storage_that_stalls_behind_a_limit_is_given_up_at_the_deadline() -> None:
    class Stalled:
        description = "a storage that stalls"

        async def put(self, _: BlobName, source: Source, *, deadline: Deadline) -> None:
            assert [chunk async for chunk in source.chunks()]
            assert not deadline.expired
            await asyncio.Event().wait()

    inner: Backend = Stalled()  # type: ignore[assignment]  # only put is called
    limited = LimitedBackend(inner, read=Meter(0), write=Meter(1e9))
    with pytest.raises(Unreachable, match="not answered"):
        await limited.put(BlobName("a", Digest.of(b"x")), b"x", deadline=Deadline.after(0.2))


async def test_without_a_rate_nobody_waits() -> None:
    clock = Clock()
    meter = Meter(0, clock=clock, sleep=clock.sleep)
    await meter.spend(10**12)
    assert clock.now == 100.0
