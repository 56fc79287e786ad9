# SPDX-License-Identifier: Apache-2.0
"""Pushes whose services are killed between one step and the next."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest

from shoal.buildindex.client import BuildIndexClient
from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from tests.cluster import RunningCluster

PATIENT = RetryPolicy(initial=0.3, factor=1.2, cap=1.0, attempts=60)
SLOW = {"initial": "300ms", "factor": 1.2, "cap": "1s", "attempts": 60}


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    options = ["--proxies", "0", "--build-indexes", "2"]
    config = {"build-index": {"resolver": {"existence": SLOW, "manifest": SLOW}}}
    folder = tmp_path_factory.mktemp("cluster")
    with RunningCluster.start(folder, agents=0, options=options, config=config) as running:
        yield running


@pytest.fixture
def cluster(shared_cluster: RunningCluster) -> Iterator[RunningCluster]:
    """The cluster; what a test kills is started again after it."""
    yield shared_cluster
    for service, pid in list(shared_cluster.pids.items()):
        if not psutil.pid_exists(pid):
            shared_cluster.restart(service)


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    http = HttpClient(user_agent="test")
    yield http
    await http.close()


class Pusher:
    """Stores blobs and tags images, as a proxy does."""

    def __init__(self, cluster: RunningCluster, http: HttpClient, *indexes: int) -> None:
        self._cluster = cluster
        self._hosts = [url.removeprefix("http://") for url in cluster.origins]
        self.origins = OriginCluster(http, OriginsConfig(hosts=self._hosts))
        urls = [cluster.build_indexes[number] for number in indexes or (0,)]
        hosts = [url.removeprefix("http://") for url in urls]
        self.index = BuildIndexClient(http, HostsConfig(hosts=hosts), retry=PATIENT)

    async def store(self, content: bytes) -> list[str]:
        """Store a blob; the origins that have acknowledged it."""
        path = self._cluster.folder / Digest.of(content).hex
        await asyncio.to_thread(path.write_bytes, content)
        stored = await self.origins.upload(
            Digest.of(content), path, len(content), deadline=Deadline.after(30)
        )
        return [f"origin-{self._hosts.index(host)}" for host in stored.hosts]

    async def put(self, manifest: bytes, *, body: bool = True) -> Digest:
        digest = Digest.of(manifest)
        content = manifest if body else None
        await self.index.put_tag("team/app", "v1", digest, content, None, deadline=soon())
        return digest

    async def tag(self) -> Digest | None:
        return await self.index.get_tag("team/app", "v1", deadline=soon())


def soon() -> Deadline:
    return Deadline.after(60.0)


def image() -> tuple[bytes, bytes, bytes]:
    """Config, layer and manifest of an image that nobody has yet."""
    config, layer = os.urandom(100), os.urandom(5000)

    def descriptor(content: bytes) -> dict[str, Any]:
        digest = Digest.of(content)
        return {"mediaType": "application/x", "digest": str(digest), "size": len(content)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(config),
            "layers": [descriptor(layer)],
        }
    ).encode()
    return config, layer, manifest


@pytest.mark.parametrize("body", [True, False])
async def test_an_origin_that_dies_between_its_201_and_the_tag_costs_no_push(
    cluster: RunningCluster, http: HttpClient, body: bool
) -> None:
    """Only the first owner was asked, and it might be the one that had no copy, or was gone."""
    pusher = Pusher(cluster, http)
    config, layer, manifest = image()
    await pusher.store(config)
    await pusher.store(layer)
    first, *_ = await pusher.store(manifest)
    await asyncio.to_thread(cluster.kill, first)
    assert await pusher.put(manifest, body=body) == await pusher.tag()


async def test_origins_that_are_started_again_within_the_retries_cost_no_push(
    cluster: RunningCluster, http: HttpClient
) -> None:
    pusher = Pusher(cluster, http)
    blobs = image()
    for content in blobs:
        await pusher.store(content)
    await pusher.origins.drain(10.0)
    for name in ("origin-0", "origin-1"):
        await asyncio.to_thread(cluster.kill, name)
    push = asyncio.create_task(pusher.put(blobs[-1], body=False))
    await asyncio.to_thread(cluster.restart, "origin-1")
    assert await push == await pusher.tag()


@pytest.mark.parametrize("restart", [True, False])
async def test_a_build_index_that_dies_during_resolution_costs_no_push(
    cluster: RunningCluster, http: HttpClient, restart: bool
) -> None:
    """It is started again, or there is another one; until the push is done the old tag holds."""
    indexes = (0,) if restart else (0, 1)
    pusher = Pusher(cluster, http, *indexes)
    old = image()
    for content in old:
        await pusher.store(content)
    before = await pusher.put(old[-1])

    config, layer, manifest = image()
    await pusher.store(config)
    await pusher.store(manifest)
    push = asyncio.create_task(pusher.put(manifest))
    log = cluster.log_path("build-index-0")
    async with asyncio.timeout(20):
        while f"{Digest.of(manifest)}" not in log.read_text():  # noqa: ASYNC110 it is retrying
            await asyncio.sleep(0.05)
    await asyncio.to_thread(cluster.kill, "build-index-0")
    if restart:
        await asyncio.to_thread(cluster.restart, "build-index-0")
    assert await pusher.tag() == before
    await pusher.store(layer)
    assert await push == await pusher.tag()
    if not restart:
        await asyncio.to_thread(cluster.restart, "build-index-0")
    for number in (0, 1):
        assert await Pusher(cluster, http, number).tag() == Digest.of(manifest)


async def test_pushes_of_one_tag_at_once_end_with_one_of_the_digests_everywhere(
    cluster: RunningCluster, http: HttpClient
) -> None:
    pushers = [Pusher(cluster, http, number) for number in (0, 1)]
    for _ in range(10):
        images = [image(), image()]
        for content in (*images[0], *images[1]):
            await pushers[0].store(content)
        pushes = (pusher.put(blobs[-1]) for pusher, blobs in zip(pushers, images, strict=True))
        pushed = await asyncio.gather(*pushes)
        found = {await pusher.tag() for pusher in pushers}
        assert len(found) == 1
        assert found <= set(pushed)
