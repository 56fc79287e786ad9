# SPDX-License-Identifier: Apache-2.0
"""The clients of a run of chaos: how long an image was unavailable, as its reader saw it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from shoal.chaos.ledger import Ledger, Pushed
from shoal.chaos.traffic import Reader
from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST
from shoal.registry.client import PulledManifest, RegistryClient
from shoal.web.client import HttpClient
from shoal.web.failures import Unreachable

IMAGE = Pushed("chaos/writer", "latest", Digest.of(b"manifest"), ())


class Registry(RegistryClient):
    """Answers each try as it is told, by a clock that jumps."""

    def __init__(self, http: HttpClient, *tries: Callable[[], None]) -> None:
        super().__init__(http, "http://127.0.0.1:1")
        self._tries = list(tries)
        self.idle = asyncio.Event()

    async def get_manifest(self, repository: str, reference: Digest | str) -> PulledManifest:
        if not self._tries:
            self.idle.set()
            await asyncio.Event().wait()
        self._tries.pop(0)()
        return PulledManifest(b"manifest", OCI_MANIFEST, IMAGE.root)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def fails_after(self, seconds: float) -> Callable[[], None]:
        def fail() -> None:
            self.passes(seconds)
            raise Unreachable("GET", "/v2/", "nothing came")

        return fail

    def comes_after(self, seconds: float) -> Callable[[], None]:
        return lambda: self.passes(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def read(clock: Clock, *tries: Callable[[], None]) -> AsyncIterator[Ledger]:
    """A reader at work, once it has done the `tries` and hangs in the next one; then it ends."""
    ledger, http = Ledger(), HttpClient(user_agent="test")
    ledger.begin(IMAGE)
    ledger.acknowledge(IMAGE)
    registry = Registry(http, *tries)
    reading = asyncio.create_task(Reader(0, 1, [registry], ledger, clock=clock).run())
    try:
        async with asyncio.timeout(10):
            await registry.idle.wait()
        yield ledger
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await http.close()


async def test_the_try_that_succeeds_counts_to_its_end(clock: Clock) -> None:
    async with read(clock, clock.fails_after(2), clock.comes_after(5)) as ledger:
        assert ledger.longest_unavailable == 7
        assert ledger.failures == {"pull: Unreachable": 1}
        assert ledger.operations["pull"] == 1


async def test_a_pull_that_hung_before_it_came_counts(clock: Clock) -> None:
    async with read(clock, clock.comes_after(9), clock.comes_after(1)) as ledger:
        assert ledger.longest_unavailable == 9
        assert not ledger.failures


async def test_a_pull_that_is_under_way_at_the_end_counts(clock: Clock) -> None:
    async with read(clock, clock.comes_after(1)) as ledger:
        clock.passes(30)
        assert ledger.longest_unavailable == 1
    assert ledger.longest_unavailable == 30
