# SPDX-License-Identifier: Apache-2.0
"""Pushes while processes die: nothing acknowledged is lost, and what failed can be sent again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from shoal.model.digest import Digest
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Overloaded
from tests.cluster import RunningCluster

NAME = "team/app"
ORIGINS = ("origin-0", "origin-1", "origin-2")


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with RunningCluster.start(tmp_path_factory.mktemp("push-faults"), agents=0) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


async def kill(cluster: RunningCluster, *services: str) -> None:
    for service in services:
        await asyncio.to_thread(cluster.kill, service)


async def restart(cluster: RunningCluster, *services: str) -> None:
    for service in services:
        await asyncio.to_thread(cluster.restart, service)


async def pulled(registry: RegistryClient, digest: Digest) -> bytes:
    async with registry.stream_blob(NAME, digest) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


def soon() -> Deadline:
    return Deadline.after(30)


async def missing_at_the_proxy(http: HttpClient, cluster: RunningCluster) -> str:
    with pytest.raises(Overloaded) as unready:
        await http.call("GET", f"{cluster.proxy}/readiness", deadline=soon())
    return "; ".join(unready.value.body["missing"])


async def test_origins_that_die_cost_no_acknowledged_blob(
    cluster: RunningCluster, http: HttpClient
) -> None:
    registry = RegistryClient(http, cluster.proxy)
    contents = {Digest.of(content): content for content in (os.urandom(900_000), os.urandom(10))}
    for digest, content in contents.items():
        await registry.push_blob(NAME, digest, content, way="stream")

    # One origin less: pushes go on, and everything is still there.
    await kill(cluster, "origin-1")
    later = os.urandom(500_000)
    contents[Digest.of(later)] = later
    await registry.push_blob(NAME, Digest.of(later), later)
    for digest, content in contents.items():
        assert await pulled(registry, digest) == content

    # Two less: a push is refused, by name, and its bytes are kept for the next try.
    await kill(cluster, "origin-2")
    upload = await http.call(
        "POST", f"{cluster.proxy}/v2/{NAME}/blobs/uploads/", deadline=soon(), expect=(202,)
    )
    location = cluster.proxy + upload.headers["Location"]
    content = os.urandom(300_000)
    put = f"{location}?digest={Digest.of(content)}"
    with pytest.raises(Overloaded) as refused:
        await http.call("PUT", put, data=content, deadline=soon(), expect=(201,))
    assert (refused.value.status, refused.value.code) == (503, "UNAVAILABLE")
    for origin in (cluster.origins[1], cluster.origins[2]):
        assert origin.removeprefix("http://") in refused.value.detail
    assert "write quorum is 2" in await missing_at_the_proxy(http, cluster)

    await restart(cluster, "origin-2")
    await http.call("PUT", put, deadline=soon(), expect=(201,))
    contents[Digest.of(content)] = content
    # The client may never have seen that answer.
    await http.call("PUT", put, deadline=soon(), expect=(201,))

    # All of them killed at once: what was acknowledged is on disk.
    await kill(cluster, "origin-0", "origin-2")
    await restart(cluster, *ORIGINS)
    for digest, content in contents.items():
        assert await pulled(registry, digest) == content


async def test_an_upload_outlives_the_proxy(cluster: RunningCluster, http: HttpClient) -> None:
    upload = await http.call(
        "POST", f"{cluster.proxy}/v2/{NAME}/blobs/uploads/", deadline=soon(), expect=(202,)
    )
    location = cluster.proxy + upload.headers["Location"]
    content = os.urandom(1_000_000)
    await http.call("PATCH", location, data=content[:600_000], deadline=soon(), expect=(202,))
    await kill(cluster, "proxy-0")
    await restart(cluster, "proxy-0")
    status = await http.call("GET", location, deadline=soon(), expect=(204,))
    assert status.headers["Range"] == "0-599999"
    await http.call(
        "PUT",
        f"{location}?digest={Digest.of(content)}",
        data=content[600_000:],
        headers={"Content-Range": "600000-999999"},
        deadline=soon(),
        expect=(201,),
    )
    assert await pulled(RegistryClient(http, cluster.proxy), Digest.of(content)) == content


async def test_without_a_build_index_nobody_is_told_that_something_is_not_there(
    cluster: RunningCluster, http: HttpClient
) -> None:
    registry = RegistryClient(http, cluster.proxy)
    content = os.urandom(1000)
    await registry.push_blob(NAME, Digest.of(content), content)
    await kill(cluster, "build-index-0")
    assert "build-index " in await missing_at_the_proxy(http, cluster)
    for asked in (registry.get_manifest(NAME, "v1"), pulled(registry, Digest.of(content))):
        with pytest.raises(Overloaded) as refused:
            await asked
        assert refused.value.code == "UNAVAILABLE"
    await restart(cluster, "build-index-0")
    assert await pulled(registry, Digest.of(content)) == content


async def test_a_push_under_way_is_finished_before_the_proxy_stops(
    cluster: RunningCluster, http: HttpClient
) -> None:
    registry = RegistryClient(http, cluster.proxy)
    contents = [os.urandom(1_000_000) for _ in range(4)]
    pushes = [
        asyncio.create_task(registry.push_blob(NAME, Digest.of(content), content, way="put"))
        for content in contents
    ]
    done, _ = await asyncio.wait(pushes, return_when=asyncio.FIRST_COMPLETED)
    assert done
    await asyncio.to_thread(cluster.kill, "proxy-0", signal.SIGTERM)
    outcomes = await asyncio.gather(*pushes, return_exceptions=True)
    await restart(cluster, "proxy-0")
    for content, outcome in zip(contents, outcomes, strict=True):
        if outcome is True:
            assert await pulled(registry, Digest.of(content)) == content
