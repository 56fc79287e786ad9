# SPDX-License-Identifier: Apache-2.0
"""Trackers that die in the middle of a download, start anew, or lose Redis; and zones."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import yaml

from shoal.model.digest import Digest
from shoal.ring.rendezvous import owners
from tests.cluster import RunningCluster
from tests.redis_server import RedisServer

SIZE = 12 * 1024 * 1024
SLOWLY = {"agent": {"peer": {"ingress": "2MB/s"}}}
"""A download takes long enough to be met in its middle."""

SECONDS = 15.0
"""Within which a swarm finds itself again."""

T = TypeVar("T")


async def upload(http: aiohttp.ClientSession, cluster: RunningCluster, data: bytes) -> Digest:
    digest = Digest.of(data)
    url = f"{cluster.origins[0]}/namespace/team%2Fblobs/blobs/{digest}"
    async with http.put(url, data=io.BytesIO(data)) as answer:
        assert answer.status == 201, await answer.text()
    return digest


async def pull(
    http: aiohttp.ClientSession, cluster: RunningCluster, agent: int, digest: Digest
) -> bytes:
    url = f"{cluster.agents[agent].admin}/namespace/team%2Fblobs/blobs/{digest}"
    async with http.get(url) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def until(ask: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    """Ask again until the answer is as wanted."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = await ask()
            if wanted(found):
                return found
            await asyncio.sleep(0.1)


def tracker_of(cluster: RunningCluster, digest: Digest) -> int:
    hosts = [url.removeprefix("http://") for url in cluster.trackers]
    return hosts.index(owners(digest, hosts, 1)[0])


def peer_port(cluster: RunningCluster, agent: int) -> int:
    config = yaml.safe_load(cluster.config_path(f"agent-{agent}").read_text())
    return int(config["peer"]["listen"].rpartition(":")[2])


async def known(
    http: aiohttp.ClientSession, cluster: RunningCluster, tracker: int, digest: Digest
) -> dict[str, set[int]]:
    """The peer ports of the agents that a tracker knows to have or fetch a blob."""
    async with http.get(f"{cluster.trackers[tracker]}/blobs/{digest}/peers") as answer:
        found: dict[str, Any] = await answer.json()
    return {kind: {peer["port"] for peer in found[kind]} for kind in ("seeds", "leechers")}


async def verified(
    http: aiohttp.ClientSession, cluster: RunningCluster, agent: int, digest: Digest
) -> int:
    async with http.get(f"{cluster.agents[agent].admin}/swarm") as answer:
        blobs = (await answer.json())["blobs"]
    return next((int(blob["verified"]) for blob in blobs if blob["digest"] == str(digest)), 0)


async def test_a_tracker_that_dies_and_starts_empty_stops_no_download_and_is_told_again(
    tmp_path: Path,
) -> None:
    data = os.urandom(SIZE)
    with RunningCluster.start(
        tmp_path, agents=2, options=["--proxies", "0", "--trackers", "2"], config=SLOWLY
    ) as cluster:
        async with aiohttp.ClientSession() as http:
            digest = await upload(http, cluster, data)
            tracker = tracker_of(cluster, digest)
            me = peer_port(cluster, 0)
            download = asyncio.create_task(pull(http, cluster, 0, digest))
            await until(lambda: verified(http, cluster, 0, digest), bool)
            await asyncio.to_thread(cluster.kill, f"tracker-{tracker}")
            assert not download.done()
            # The next one in order takes its place.
            await until(
                lambda: known(http, cluster, 1 - tracker, digest),
                lambda found: me in found["leechers"] | found["seeds"],
            )
            await asyncio.to_thread(cluster.restart, f"tracker-{tracker}")
            await until(
                lambda: known(http, cluster, tracker, digest),
                lambda found: me in found["leechers"] | found["seeds"],
            )
            assert await download == data
            await until(
                lambda: known(http, cluster, tracker, digest), lambda found: me in found["seeds"]
            )
            # Idle now; a tracker that starts anew is told of what is here all the same.
            await asyncio.to_thread(cluster.kill, f"tracker-{tracker}")
            await asyncio.to_thread(cluster.restart, f"tracker-{tracker}")
            await until(
                lambda: known(http, cluster, tracker, digest), lambda found: me in found["seeds"]
            )
            assert await pull(http, cluster, 1, digest) == data
            await until(
                lambda: known(http, cluster, tracker, digest),
                lambda found: {me, peer_port(cluster, 1)} <= found["seeds"],
            )


@pytest.mark.client("redis")
async def test_a_tracker_over_redis_knows_everyone_after_a_restart_and_works_without_it(
    tmp_path: Path,
) -> None:
    with RedisServer.start(tmp_path / "redis") as redis:
        config = {"tracker": {"store": redis.url}}
        with RunningCluster.start(
            tmp_path / "cluster", agents=2, options=["--proxies", "0"], config=config
        ) as cluster:
            async with aiohttp.ClientSession() as http:
                data = os.urandom(SIZE)
                digest = await upload(http, cluster, data)
                assert await pull(http, cluster, 0, digest) == data
                me = peer_port(cluster, 0)
                await until(
                    lambda: known(http, cluster, 0, digest), lambda found: me in found["seeds"]
                )
                await asyncio.to_thread(cluster.kill, "agent-0")  # It can announce no more.
                await asyncio.to_thread(cluster.kill, "tracker-0")
                await asyncio.to_thread(cluster.restart, "tracker-0")
                found = await known(http, cluster, 0, digest)
                # That it is complete may have been heard too late to be written.
                assert me in found["seeds"] | found["leechers"]

                redis.kill()
                other = os.urandom(SIZE)
                assert await pull(http, cluster, 1, await upload(http, cluster, other)) == other

                async def readiness() -> tuple[int, str]:
                    async with http.get(f"{cluster.trackers[0]}/readiness") as answer:
                        return answer.status, await answer.text()

                await until(readiness, lambda said: said[0] == 503 and "redis" in said[1])
                log = cluster.log_path("tracker-0").read_text()
                assert "redis is down" in log
                redis.run()
                await until(readiness, lambda said: said[0] == 200)


async def test_a_blob_that_only_a_host_of_another_zone_has_is_fetched_from_there(
    tmp_path: Path,
) -> None:
    config = {"agent-0": {"zone": "east"}, "agent-1": {"zone": "west"}}
    with RunningCluster.start(
        tmp_path, agents=2, options=["--proxies", "0"], config=config
    ) as cluster:
        async with aiohttp.ClientSession() as http:
            data = os.urandom(SIZE)
            digest = await upload(http, cluster, data)
            assert await pull(http, cluster, 0, digest) == data
            await until(
                lambda: known(http, cluster, 0, digest),
                lambda found: peer_port(cluster, 0) in found["seeds"],
            )
            for number in range(3):
                await asyncio.to_thread(cluster.kill, f"origin-{number}")
            assert await pull(http, cluster, 1, digest) == data
