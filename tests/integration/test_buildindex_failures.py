# SPDX-License-Identifier: Apache-2.0
"""Build-indexes and origins that die and come back."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from shoal.buildindex.client import BuildIndexClient
from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Overloaded
from tests.cluster import RunningCluster


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    options = ["--proxies", "0", "--build-indexes", "2"]
    folder = tmp_path_factory.mktemp("cluster")
    with RunningCluster.start(folder, agents=0, options=options) as running:
        yield running


@pytest.fixture
def cluster(shared_cluster: RunningCluster) -> Iterator[RunningCluster]:
    """The cluster; what a test kills is started again after it."""
    yield shared_cluster
    for service, pid in list(shared_cluster.pids.items()):
        if not psutil.pid_exists(pid):
            shared_cluster.restart(service)


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    return str(request.node.name).replace("_", "-")


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    http = HttpClient(user_agent="test")
    yield http
    await http.close()


def soon() -> Deadline:
    return Deadline.after(20.0)


def index_client(cluster: RunningCluster, http: HttpClient, *numbers: int) -> BuildIndexClient:
    hosts = [cluster.build_indexes[number].removeprefix("http://") for number in numbers]
    return BuildIndexClient(http, HostsConfig(hosts=hosts))


async def push(
    cluster: RunningCluster, http: HttpClient, index: BuildIndexClient, name: str
) -> Digest:
    """Push an index without children, the smallest manifest there is, as ``repository:tag``."""
    repository, _, tag = name.partition(":")
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
            "annotations": {"written": str(time.monotonic_ns())},
        }
    ).encode()
    hosts = [url.removeprefix("http://") for url in cluster.origins]
    origins = OriginCluster(http, OriginsConfig(hosts=hosts))
    digest = Digest.of(manifest)
    path = cluster.folder / digest.hex
    await asyncio.to_thread(path.write_bytes, manifest)
    await origins.upload(digest, path, len(manifest), deadline=soon())
    await origins.drain(5.0)
    await index.put_tag(repository, tag, digest, manifest, None, deadline=soon())
    return digest


async def test_an_acknowledged_tag_survives_a_kill(
    cluster: RunningCluster, http: HttpClient, repository: str
) -> None:
    index = index_client(cluster, http, 0)
    digest = await push(cluster, http, index, f"{repository}:latest")
    for name in ("build-index-0", "build-index-1"):
        await asyncio.to_thread(cluster.kill, name)
    await asyncio.to_thread(cluster.restart, "build-index-0")
    assert await index.get_tag(repository, "latest", deadline=soon()) == digest
    newer = await push(cluster, http, index, f"{repository}:latest")
    assert await index.get_tag(repository, "latest", deadline=soon()) == newer


async def test_a_neighbour_that_was_down_has_every_tag_when_it_is_ready_again(
    cluster: RunningCluster, http: HttpClient, repository: str
) -> None:
    alive, back = index_client(cluster, http, 0), index_client(cluster, http, 1)
    await push(cluster, http, alive, f"{repository}:latest")
    await asyncio.to_thread(cluster.kill, "build-index-1")
    started = time.monotonic()
    moved = await push(cluster, http, alive, f"{repository}:latest")
    new = await push(cluster, http, alive, f"{repository}:v2")
    assert time.monotonic() - started < 5.0
    await asyncio.to_thread(cluster.restart, "build-index-1")
    assert await back.get_tag(repository, "latest", deadline=soon()) == moved
    assert await back.get_tag(repository, "v2", deadline=soon()) == new


async def test_a_neighbour_that_lost_its_disk_gets_everything_again(
    cluster: RunningCluster, http: HttpClient, repository: str
) -> None:
    alive, back = index_client(cluster, http, 0), index_client(cluster, http, 1)
    first = await push(cluster, http, back, f"{repository}:latest")
    await asyncio.to_thread(cluster.kill, "build-index-1")
    await asyncio.to_thread(shutil.rmtree, cluster.data_dir("build-index-1"))
    await asyncio.to_thread(cluster.restart, "build-index-1")
    assert await back.get_tag(repository, "latest", deadline=soon()) == first
    # Its sequence numbers began anew: the other must not go on from where it was.
    await asyncio.to_thread(cluster.kill, "build-index-0")
    second = await push(cluster, http, back, f"{repository}:latest")
    await asyncio.to_thread(cluster.restart, "build-index-0")
    assert await alive.get_tag(repository, "latest", deadline=soon()) == second


async def test_the_client_goes_on_with_the_build_index_that_is_alive(
    cluster: RunningCluster, http: HttpClient, repository: str
) -> None:
    both = index_client(cluster, http, 0, 1)
    await push(cluster, http, both, f"{repository}:latest")
    await asyncio.to_thread(cluster.kill, "build-index-0")
    digest = await push(cluster, http, both, f"{repository}:latest")
    assert await both.get_tag(repository, "latest", deadline=soon()) == digest
    assert await both.get_tag(repository, "absent", deadline=soon()) is None
    assert await both.tags(repository, deadline=soon()) == ["latest"]
    assert await both.readiness() == []


async def test_tags_can_be_pushed_while_a_quorum_of_origins_lives_and_not_below(
    cluster: RunningCluster, http: HttpClient, repository: str
) -> None:
    index = index_client(cluster, http, 0)
    digest = await push(cluster, http, index, f"{repository}:v1")
    await asyncio.to_thread(cluster.kill, "origin-0")
    await push(cluster, http, index, f"{repository}:v2")
    await asyncio.to_thread(cluster.kill, "origin-1")
    with pytest.raises(Overloaded) as refused:
        await index.put_tag(repository, "v1", Digest.of(b"?"), None, None, deadline=soon())
    assert (refused.value.status, refused.value.code) == (503, "UNAVAILABLE")
    assert cluster.origins[0].removeprefix("http://") in str(refused.value)
    assert await index.get_tag(repository, "v1", deadline=soon()) == digest

    async def unready() -> str:
        while True:
            try:
                url = f"{cluster.build_indexes[0]}/readiness"
                await http.call("GET", url, deadline=soon())
            except Overloaded as error:
                return " ".join(error.body["missing"])
            await asyncio.sleep(0.1)

    missing = await asyncio.wait_for(unready(), 10.0)
    assert "1 origin(s) answer, the write quorum is 2" in missing
    assert cluster.origins[1].removeprefix("http://") in missing


def test_a_second_build_index_on_the_same_folder_says_so_in_one_line(
    cluster: RunningCluster,
) -> None:
    config = cluster.config_path("build-index-0")
    argv = [sys.executable, "-m", "shoal", "build-index", "--config", str(config)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "another build-index runs on" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
