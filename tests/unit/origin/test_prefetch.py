# SPDX-License-Identifier: Apache-2.0
"""What an origin is asked to have ready: told at once, fetched a few at a time, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, InsufficientStorage, StillFetching, Unavailable
from shoal.origin.messages import PrefetchAnswer
from shoal.origin.prefetch import Prefetcher
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable

REPOSITORY = "team/app"
BLOBS = [Digest.of(bytes([number])) for number in range(6)]
SIZE = 5


@dataclass
class Cluster:
    """The other origins and the backend: what is where, and what was done."""

    here: set[Digest] = field(default_factory=set)
    backed: set[Digest] = field(default_factory=lambda: set(BLOBS))
    silent: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failures: dict[Digest, Exception] = field(default_factory=dict)
    asked: int = 0
    under_way: int = 0
    most: int = 0
    brought: list[tuple[Digest, str, bool]] = field(default_factory=list)


class Origins:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def stat(
        self, digest: Digest, *, deadline: Deadline, keep: bool = False, namespace: str = ""
    ) -> int | None:
        assert keep, "what an operator wants is not collected meanwhile"
        assert not namespace
        if self._cluster.silent:
            raise Unreachable("GET", "/", "two origins are silent")
        return SIZE if digest in self._cluster.here else None


class Fetcher:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def stat(
        self, digest: Digest, repository: str, deadline: Deadline, *, led: bool = False
    ) -> int:
        assert led
        self._cluster.asked += 1
        await asyncio.sleep(0)
        if digest not in self._cluster.backed:
            raise BlobUnknown(f"the backend has not got {digest} either")
        return SIZE

    async def bring(
        self, digest: Digest, repository: str, deadline: Deadline, *, led: bool = False
    ) -> int:
        cluster = self._cluster
        cluster.under_way += 1
        cluster.most = max(cluster.most, cluster.under_way)
        try:
            await cluster.gate.wait()
            await asyncio.sleep(0)
            if digest in cluster.failures:
                raise cluster.failures[digest]
        finally:
            cluster.under_way -= 1
            cluster.brought.append((digest, repository, led))
        cluster.here.add(digest)
        return SIZE


@asynccontextmanager
async def prefetcher(cluster: Cluster, **options: int) -> AsyncIterator[Prefetcher]:
    running = Prefetcher(
        Origins(cluster), Fetcher(cluster), **{"concurrency": 2, "max_waiting": 3} | options
    )
    try:
        yield running
    finally:
        await running.close()


async def begin(running: Prefetcher, digest: Digest) -> PrefetchAnswer:
    return await running.begin(digest, REPOSITORY, Deadline.after(20))


async def until_brought(cluster: Cluster, count: int) -> None:
    async with asyncio.timeout(10):
        while len(cluster.brought) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


def outcomes(outcome: str) -> float:
    return REGISTRY.get_sample_value("shoal_prefetches_total", {"outcome": outcome}) or 0.0


async def test_who_asks_is_answered_before_the_bytes_come() -> None:
    cluster = Cluster(here={BLOBS[0]})
    fetched = outcomes("fetched")
    async with prefetcher(cluster) as running:
        assert await begin(running, BLOBS[0]) == PrefetchAnswer(SIZE, ready=True)
        assert cluster.asked == 0
        assert await begin(running, BLOBS[1]) == PrefetchAnswer(SIZE, ready=False)
        cluster.gate.set()
        await until_brought(cluster, 1)
        assert await begin(running, BLOBS[1]) == PrefetchAnswer(SIZE, ready=True)
    # It is led: this origin is the one that fetches for all.
    assert cluster.brought == [(BLOBS[1], REPOSITORY, True)]
    assert outcomes("fetched") == fetched + 1


async def test_however_often_it_is_asked_for_a_blob_is_fetched_once() -> None:
    cluster = Cluster()
    async with prefetcher(cluster, concurrency=1) as running:
        answers = await asyncio.gather(*(begin(running, BLOBS[0]) for _ in range(10)))
        await asyncio.gather(*(begin(running, BLOBS[1]) for _ in range(10)))
        asked = cluster.asked
        answers += [await begin(running, BLOBS[0]), await begin(running, BLOBS[1])]
        assert cluster.asked == asked, "what is noted needs no question to the backend"
        assert {answer.ready for answer in answers} == {False}
        cluster.gate.set()
        await until_brought(cluster, 2)
    assert [digest for digest, _, _ in cluster.brought] == BLOBS[:2]


async def test_few_are_fetched_at_once_and_no_more_are_noted_than_there_is_place_for() -> None:
    cluster = Cluster()
    async with prefetcher(cluster, concurrency=2, max_waiting=3) as running:
        for digest in BLOBS[:5]:
            await begin(running, digest)
            await asyncio.sleep(0)  # a worker takes the first ones
        with pytest.raises(Unavailable, match="send the request again later") as raised:
            await begin(running, BLOBS[5])
        assert raised.value.headers["Retry-After"]
        cluster.gate.set()
        await until_brought(cluster, 5)
        await begin(running, BLOBS[5])
        await until_brought(cluster, 6)
    assert cluster.most == 2


async def test_what_neither_origins_nor_backend_have_is_not_there() -> None:
    async with prefetcher(Cluster(backed=set())) as running:
        with pytest.raises(BlobUnknown):
            await begin(running, BLOBS[0])


async def test_silent_origins_keep_nobody_from_the_backend_but_from_saying_not_there() -> None:
    cluster = Cluster(silent=True, backed={BLOBS[0]})
    async with prefetcher(cluster) as running:
        assert await begin(running, BLOBS[0]) == PrefetchAnswer(SIZE, ready=False)
        with pytest.raises(Unreachable, match="two origins are silent"):
            await begin(running, BLOBS[1])


@pytest.mark.parametrize(
    "failure",
    [
        InsufficientStorage("no room"),
        Unreachable("GET", "s3://x", "refused"),
        ValueError("a defect"),
    ],
)
async def test_one_that_fails_stops_none_of_the_others(failure: Exception) -> None:
    cluster = Cluster(failures={BLOBS[0]: failure})
    cluster.gate.set()
    counted = outcomes("failed")
    async with prefetcher(cluster, concurrency=1) as running:
        await begin(running, BLOBS[0])
        await begin(running, BLOBS[1])
        await until_brought(cluster, 2)
    assert outcomes("failed") == counted + 1
    assert cluster.here == {BLOBS[1]}


async def test_one_that_takes_long_keeps_its_place() -> None:
    """Or transfers would pile up, and those that somebody waits for behind them."""
    cluster = Cluster(failures={BLOBS[0]: StillFetching("it takes long")})
    cluster.gate.set()
    async with prefetcher(cluster, concurrency=1) as running:
        await begin(running, BLOBS[0])
        await begin(running, BLOBS[1])
        await until_brought(cluster, 5)
        assert {digest for digest, _, _ in cluster.brought} == {BLOBS[0]}
        cluster.failures.clear()
        async with asyncio.timeout(10):
            while cluster.here != {BLOBS[0], BLOBS[1]}:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_what_is_under_way_ends_with_the_origin() -> None:
    cluster = Cluster()
    async with prefetcher(cluster, concurrency=1) as running:
        await begin(running, BLOBS[0])
        await begin(running, BLOBS[1])
        await asyncio.sleep(0)
    assert (cluster.under_way, cluster.here) == (0, set())
