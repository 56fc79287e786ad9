# SPDX-License-Identifier: Apache-2.0
"""Rate limits for bytes that do not come over a peer's connection."""

from __future__ import annotations

import asyncio
import time

import pytest

from shoal.model.digest import Digest
from shoal.swarm.limits import Share
from shoal.swarm.throttle import Throttle, throttle

SHARE = Share(Digest.of(b"blob"), small=False)


def test_without_a_limit_there_is_none() -> None:
    assert throttle(0, 0) is None


async def test_bytes_are_admitted_at_the_rate() -> None:
    limit = Throttle(20e6, 0)
    began = time.monotonic()
    async with asyncio.timeout(20):
        for _ in range(8):
            await limit.admit(SHARE, 1_000_000)
    # 8 MB at 20 MB/s; some may go at once.
    assert time.monotonic() - began > 0.1
    limit.stop()


async def test_who_no_longer_waits_takes_nobodys_turn() -> None:
    limit = Throttle(1e6, 0)
    greedy = asyncio.create_task(limit.admit(SHARE, 100_000_000))
    await asyncio.sleep(0)
    greedy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await greedy
    async with asyncio.timeout(10):
        await limit.admit(SHARE, 1000)
    limit.stop()
