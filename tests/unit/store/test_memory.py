# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from prometheus_client import REGISTRY

from shoal.model.digest import Digest
from shoal.store import memory
from shoal.store.memory import MemoryCache

BODIES = [bytes([number]) * 1000 for number in range(5)]
DIGESTS = [Digest.of(body) for body in BODIES]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"shoal_memory_cache_{name}", labels) or 0.0


def test_those_used_last_stay() -> None:
    cache = MemoryCache(3 * 1600)
    for digest, body in zip(DIGESTS[:3], BODIES, strict=False):
        cache.keep(digest, body)
    assert cache.get(DIGESTS[0]) == BODIES[0]
    cache.keep(DIGESTS[3], BODIES[3])
    assert [cache.get(digest) is not None for digest in DIGESTS[:4]] == [True, False, True, True]


@pytest.mark.parametrize("capacity", [0, 1400])
def test_what_does_not_fit_is_left(capacity: int) -> None:
    cache = MemoryCache(capacity)
    cache.keep(DIGESTS[0], BODIES[0])
    assert cache.get(DIGESTS[0]) is None


def test_after_its_time_the_disk_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(memory, "monotonic", lambda: now)
    cache = MemoryCache(10_000, ttl=60.0)
    cache.keep(DIGESTS[0], BODIES[0])
    now = 159.0
    assert cache.get(DIGESTS[0]) == BODIES[0]
    now = 161.0
    assert cache.get(DIGESTS[0]) is None


def test_it_counts_what_it_saves() -> None:
    added, held = value("entries_added_total"), value("bytes")
    hits = value("requests_total", outcome="hit")
    misses = value("requests_total", outcome="miss")
    cache = MemoryCache(10_000)
    assert cache.get(DIGESTS[0]) is None
    cache.keep(DIGESTS[0], BODIES[0])
    assert cache.get(DIGESTS[0]) == BODIES[0]
    assert value("entries_added_total") == added + 1
    assert value("bytes") == held + 1512
    assert value("requests_total", outcome="hit") == hits + 1
    assert value("requests_total", outcome="miss") == misses + 1


def test_what_is_too_old_is_counted_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(memory, "monotonic", lambda: now)
    cache = MemoryCache(10_000, ttl=60.0)
    held = value("bytes")
    cache.keep(DIGESTS[0], BODIES[0])
    now = 161.0
    cache.keep(DIGESTS[1], BODIES[1])
    assert value("bytes") == held + 1512
    now = 222.0
    assert cache.get(DIGESTS[1]) is None
    assert value("bytes") == held


async def test_what_nobody_asks_for_leaves_when_its_time_is_over() -> None:
    cache = MemoryCache(10_000, ttl=0.1)
    held = value("bytes")
    expiring = asyncio.create_task(cache.expire())
    for digest, body in zip(DIGESTS, BODIES, strict=True):  # also what comes after it was empty
        cache.keep(digest, body)
        assert value("bytes") == held + 1512
        async with asyncio.timeout(10):
            while value("bytes") > held:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    expiring.cancel()
    with suppress(asyncio.CancelledError):
        await expiring


async def test_what_has_no_time_is_not_looked_at() -> None:
    async with asyncio.timeout(10):
        await MemoryCache(10_000).expire()
