# SPDX-License-Identifier: Apache-2.0
"""An agent pulls blobs out of a real cluster: streamed, resumed, mended, shared."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from shoal.model.digest import Digest
from shoal.swarm.metainfo import MIN_PIECE
from tests.cluster import AgentUrls, RunningCluster

SIZE = 12 * MIN_PIECE + 777
PIECES = 200
LARGE = PIECES * MIN_PIECE + 777
FIRST_PART = 64 * MIN_PIECE
"""What of a large blob is there before its last piece is asked for: seeds show pieces in order."""
TIMEOUT = aiohttp.ClientTimeout(total=60)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        yield session


async def upload(http: aiohttp.ClientSession, cluster: RunningCluster, data: bytes) -> Digest:
    digest = Digest.of(data)
    url = f"{cluster.origins[0]}/namespace/team%2Fblobs/blobs/{digest}"
    async with http.put(url, data=io.BytesIO(data)) as answer:
        assert answer.status == 201, await answer.text()
    return digest


async def link(http: aiohttp.ClientSession, cluster: RunningCluster, digest: Digest) -> None:
    """Make the blob one of the repository ``team/blobs``, as a push does."""
    url = f"{cluster.build_indexes[0]}/repositories/team%2Fblobs/blobs/{digest}"
    async with http.put(URL(url, encoded=True)) as answer:
        assert answer.status == 201, await answer.text()


def registry_url(agent: AgentUrls, digest: Digest, name: str = "team/blobs") -> str:
    return f"{agent.registry}/v2/{name}/blobs/{digest}"


def blob_url(agent: AgentUrls, digest: Digest) -> str:
    return f"{agent.admin}/namespace/team%2Fblobs/blobs/{digest}"


async def pull(http: aiohttp.ClientSession, agent: AgentUrls, digest: Digest) -> bytes:
    async with http.get(blob_url(agent, digest)) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def swarm(http: aiohttp.ClientSession, agent: AgentUrls, digest: Digest) -> dict[str, Any]:
    async with http.get(f"{agent.admin}/swarm") as answer:
        blobs: list[dict[str, Any]] = (await answer.json())["blobs"]
    return next((blob for blob in blobs if blob["digest"] == str(digest)), {})


async def metric(http: aiohttp.ClientSession, agent: AgentUrls, name: str) -> float:
    async with http.get(f"{agent.admin}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def cached(cluster: RunningCluster, agent: int, digest: Digest) -> Path:
    folder = cluster.data_dir(f"agent-{agent}") / "blobs" / digest.algorithm / digest.hex[:2]
    return folder / digest.hex


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


@asynccontextmanager
async def last_piece_withheld(
    cluster: RunningCluster, http: aiohttp.ClientSession, digest: Digest
) -> AsyncIterator[None]:
    """No origin can give the last piece, so that no download of the blob can finish."""
    async with asyncio.timeout(20):
        # The third copy is made after the write quorum has answered.
        for origin in cluster.origins:
            while (await http.head(f"{origin}/internal/blobs/{digest}")).status != 200:
                pass
    files = list(cluster.folder.glob(f"data/origin-*/blobs/*/*/{digest.hex}"))
    assert len(files) == len(cluster.origins)
    whole = {path: path.read_bytes() for path in files}
    for path in files:
        flip(path, PIECES * MIN_PIECE)
    yield
    for path, data in whole.items():
        path.write_bytes(data)


async def test_a_blob_is_pulled_by_digest_from_any_agent(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(SIZE)
    digest = await upload(http, cluster, data)
    for agent in cluster.agents:
        assert await pull(http, agent, digest) == data
    await link(http, cluster, digest)
    async with http.get(registry_url(cluster.agents[0], digest)) as answer:
        assert await answer.read() == data
        assert answer.headers["Docker-Content-Digest"] == str(digest)


async def test_the_registry_serves_what_belongs_to_the_repository_alone(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    digest = await upload(http, cluster, os.urandom(SIZE))
    await link(http, cluster, digest)
    agent = cluster.agents[0]
    async with http.get(registry_url(agent, digest)) as answer:
        assert answer.status == 200
    for method in ("GET", "HEAD"):
        async with http.request(method, registry_url(agent, digest, "team/other")) as answer:
            assert answer.status == 404
    async with http.get(registry_url(agent, Digest.of(b"nobody has this"))) as answer:
        nowhere = await answer.json()
    async with http.get(registry_url(agent, digest, "team/other")) as answer:
        foreign = await answer.json()
    assert foreign["errors"][0]["code"] == nowhere["errors"][0]["code"] == "BLOB_UNKNOWN"


async def test_what_was_pulled_before_is_pulled_while_the_build_index_is_down(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(SIZE)
    digest, other = await upload(http, cluster, data), await upload(http, cluster, b"not pulled")
    await link(http, cluster, digest)
    await link(http, cluster, other)
    agent = cluster.agents[0]
    async with http.get(registry_url(agent, digest)) as answer:
        assert await answer.read() == data
    await asyncio.to_thread(cluster.kill, "build-index-0")
    try:
        async with http.get(registry_url(agent, digest)) as answer:
            assert await answer.read() == data
        for url in (registry_url(agent, other), registry_url(agent, digest, "team/other")):
            async with http.get(url) as answer:
                assert answer.status == 503
    finally:
        await asyncio.to_thread(cluster.restart, "build-index-0")


@pytest.mark.parametrize("size", [0, 1, MIN_PIECE, MIN_PIECE + 1])
async def test_blobs_of_odd_sizes_arrive_whole(
    cluster: RunningCluster, http: aiohttp.ClientSession, size: int
) -> None:
    data = os.urandom(size)
    digest = await upload(http, cluster, data)
    assert await pull(http, cluster.agents[0], digest) == data


async def test_bytes_leave_before_the_blob_is_whole_and_a_range_need_not_wait_either(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(LARGE)
    digest = await upload(http, cluster, data)
    agent = cluster.agents[0]
    async with (
        last_piece_withheld(cluster, http, digest),
        http.get(blob_url(agent, digest)) as answer,
    ):
        assert answer.headers["Content-Length"] == str(LARGE)
        assert await answer.content.readexactly(FIRST_PART) == data[:FIRST_PART]
        blob = await swarm(http, agent, digest)
        assert blob["fetching"]
        assert blob["verified"] <= PIECES < blob["pieces"]
        wanted = {"Range": f"bytes={MIN_PIECE - 5}-{3 * MIN_PIECE}"}
        async with http.get(blob_url(agent, digest), headers=wanted) as part:
            assert part.status == 206
            content_range = f"bytes {MIN_PIECE - 5}-{3 * MIN_PIECE}/{LARGE}"
            assert part.headers["Content-Range"] == content_range
            assert await part.read() == data[MIN_PIECE - 5 : 3 * MIN_PIECE + 1]


async def test_concurrent_pulls_of_one_blob_are_one_download(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(LARGE)
    digest = await upload(http, cluster, data)
    agent = cluster.agents[0]
    before = await metric(http, agent, "shoal_swarm_received_bytes_total")
    pulls = await asyncio.gather(*(pull(http, agent, digest) for _ in range(6)))
    assert all(got == data for got in pulls)
    received = await metric(http, agent, "shoal_swarm_received_bytes_total") - before
    assert received < 2 * len(data)


async def test_head_does_not_download(cluster: RunningCluster, http: aiohttp.ClientSession) -> None:
    digest = await upload(http, cluster, os.urandom(SIZE))
    await link(http, cluster, digest)
    agent = cluster.agents[0]
    for url in (blob_url(agent, digest), registry_url(agent, digest)):
        async with http.head(url) as answer:
            assert (answer.status, answer.headers["Content-Length"]) == (200, str(SIZE))
    assert await swarm(http, agent, digest) == {}
    assert list(cluster.data_dir("agent-0").glob(f"*/*{digest.hex}*")) == []


async def test_what_is_not_there_is_a_404_and_what_is_no_digest_or_name_a_400(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    agent = cluster.agents[0]
    async with http.get(blob_url(agent, Digest.of(b"nowhere"))) as answer:
        assert answer.status == 404
        assert (await answer.json())["errors"][0]["code"] == "BLOB_UNKNOWN"
    async with http.get(f"{agent.admin}/namespace/x/blobs/sha256:beef") as answer:
        assert answer.status == 400
        assert (await answer.json())["errors"][0]["code"] == "DIGEST_INVALID"
    digest = Digest.of(b"nowhere")
    async with http.get(f"{agent.admin}/namespace/Not%2Fa%20name/blobs/{digest}") as answer:
        assert answer.status == 400
        assert (await answer.json())["errors"][0]["code"] == "NAME_INVALID"


async def test_generic_blobs_are_not_for_the_runtime_which_has_only_what_its_repositories_have(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    agent = cluster.agents[0]
    digest = await upload(http, cluster, os.urandom(1000))
    async with http.get(f"{agent.registry}/namespace/team%2Fblobs/blobs/{digest}") as answer:
        assert answer.status == 404
        assert (await answer.json())["errors"][0]["code"] == "NOT_FOUND"


async def test_an_agent_takes_no_pushes(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    async with http.post(f"{cluster.agents[0].registry}/v2/a/b/blobs/uploads/") as answer:
        assert answer.status == 405
        assert (await answer.json())["errors"][0]["code"] == "UNSUPPORTED"


async def test_a_blob_can_be_removed_from_one_host(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(SIZE)
    digest = await upload(http, cluster, data)
    agent = cluster.agents[0]
    assert await pull(http, agent, digest) == data
    async with http.delete(f"{agent.admin}/blobs/{digest}") as answer:
        assert answer.status == 202
    assert not cached(cluster, 0, digest).exists()
    async with http.delete(f"{agent.admin}/blobs/{digest}") as answer:
        assert answer.status == 404
    assert await pull(http, agent, digest) == data


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty"])
async def test_a_damaged_cached_file_is_fetched_again_and_never_served(
    cluster: RunningCluster, http: aiohttp.ClientSession, harm: str
) -> None:
    data = os.urandom(SIZE)
    digest = await upload(http, cluster, data)
    agent = cluster.agents[0]
    assert await pull(http, agent, digest) == data
    path = await eventually_cached(cluster, http, digest)
    if harm == "flip":
        flip(path, 5 * MIN_PIECE)
    else:
        os.truncate(path, 3 * MIN_PIECE + 5 if harm == "truncate" else 0)
    assert await pull(http, agent, digest) == data
    assert await pull(http, agent, digest) == data


async def eventually_cached(
    cluster: RunningCluster, http: aiohttp.ClientSession, digest: Digest
) -> Path:
    """Await the end of a download, which follows the last byte to the client."""
    path = cached(cluster, 0, digest)
    async with asyncio.timeout(20):
        while not path.exists():
            await swarm(http, cluster.agents[0], digest)
    return path


async def test_the_cache_survives_a_restart_even_when_everything_else_is_gone(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    with RunningCluster.start(tmp_path, agents=1) as cluster:
        whole, damaged = os.urandom(SIZE), os.urandom(SIZE)
        digest, other = await upload(http, cluster, whole), await upload(http, cluster, damaged)
        agent = cluster.agents[0]
        assert await pull(http, agent, digest) == whole
        assert await pull(http, agent, other) == damaged
        await eventually_cached(cluster, http, digest)
        path = await eventually_cached(cluster, http, other)
        cluster.kill("agent-0")
        flip(path, 100)
        await asyncio.to_thread(cluster.restart, "agent-0")
        assert await pull(http, agent, other) == damaged, "mended while the origins are there"
        for service in ("origin-0", "origin-1", "origin-2", "tracker-0"):
            cluster.kill(service)
        assert await pull(http, agent, digest) == whole


async def test_a_damaged_blob_that_nobody_can_mend_fails_at_once_and_is_mended_later(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    with RunningCluster.start(tmp_path, agents=1) as cluster:
        data = os.urandom(SIZE)
        digest = await upload(http, cluster, data)
        agent = cluster.agents[0]
        assert await pull(http, agent, digest) == data
        flip(await eventually_cached(cluster, http, digest), 5 * MIN_PIECE)
        others = ("origin-0", "origin-1", "origin-2", "tracker-0")
        for service in others:
            cluster.kill(service, signal.SIGTERM)
        async with asyncio.timeout(30):
            with pytest.raises(aiohttp.ClientPayloadError):
                await pull(http, agent, digest)
        for service in others:
            await asyncio.to_thread(cluster.restart, service)
        assert await pull(http, agent, digest) == data


async def test_a_partial_blob_goes_on_after_a_restart(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    with RunningCluster.start(tmp_path, agents=1) as cluster:
        data = os.urandom(LARGE)
        digest = await upload(http, cluster, data)
        agent = cluster.agents[0]
        async with last_piece_withheld(cluster, http, digest):
            async with http.get(blob_url(agent, digest)) as answer:
                assert await answer.content.readexactly(FIRST_PART) == data[:FIRST_PART]
            cluster.kill("agent-0")
        for origin in range(3):
            cluster.kill(f"origin-{origin}", signal.SIGTERM)
            await asyncio.to_thread(cluster.restart, f"origin-{origin}")
        restore(cluster, digest, data)
        await asyncio.to_thread(cluster.restart, "agent-0")
        assert await pull(http, agent, digest) == data
        received = await metric(http, agent, "shoal_swarm_received_bytes_total")
        received += await metric(http, agent, "shoal_origin_http_bytes_total")
        assert received <= LARGE - FIRST_PART + MIN_PIECE


def restore(cluster: RunningCluster, digest: Digest, data: bytes) -> None:
    """Put back the origins' copies, if they were set aside as damaged."""
    for origin in range(len(cluster.origins)):
        folder = cluster.data_dir(f"origin-{origin}") / "blobs" / digest.algorithm / digest.hex[:2]
        (folder / digest.hex).write_bytes(data)


async def test_peers_carry_a_blob_when_all_origins_are_gone(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    with RunningCluster.start(tmp_path, agents=2) as cluster:
        data = os.urandom(SIZE)
        digest = await upload(http, cluster, data)
        first, second = cluster.agents
        assert await pull(http, first, digest) == data
        await eventually_cached(cluster, http, digest)
        for origin in range(3):
            cluster.kill(f"origin-{origin}")
        assert await pull(http, second, digest) == data
        from_agents = 'shoal_swarm_received_bytes_total{source="agent"}'
        assert await metric(http, second, from_agents) >= SIZE


async def test_a_dead_tracker_stops_no_pull(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    with RunningCluster.start(tmp_path, agents=1) as cluster:
        cluster.kill("tracker-0")
        data = os.urandom(SIZE)
        digest = await upload(http, cluster, data)
        assert await pull(http, cluster.agents[0], digest) == data


async def test_without_any_reachable_peer_the_origins_serve_over_http(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    nowhere = {"origin": {"peer": {"advertise": "127.0.0.1:1"}}}
    with RunningCluster.start(tmp_path, agents=1, config=nowhere) as cluster:
        data = os.urandom(SIZE)
        digest = await upload(http, cluster, data)
        assert await pull(http, cluster.agents[0], digest) == data
        agent = cluster.agents[0]
        assert await metric(http, agent, "shoal_origin_http_bytes_total") == SIZE
