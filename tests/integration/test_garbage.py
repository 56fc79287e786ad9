# SPDX-License-Identifier: Apache-2.0
"""``shoal gc`` on a real cluster, with two build-indexes and three origins."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.cluster import RunningCluster

GRACE = 4.0
"""Seconds; far longer than a mount and a manifest take, so that a test can wait for its end."""

CONFIG = b"{}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    gc = {"gc": {"grace": f"{GRACE:.0f}s", "interval": 0}}
    with RunningCluster.start(
        tmp_path_factory.mktemp("garbage"),
        agents=0,
        options=["--build-indexes", "2"],
        config={"build-index": gc, "origin": gc},
    ) as running:
        yield running


@pytest.fixture
async def http(cluster: RunningCluster) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(cluster.proxy, timeout=timeout) as session:
        yield session


# -- what a client does -------------------------------------------------------------------------


async def start_upload(http: aiohttp.ClientSession, repository: str) -> str:
    async with http.post(f"/v2/{repository}/blobs/uploads/") as answer:
        assert answer.status == 202, await answer.text()
        return answer.headers["Location"]


async def finish_upload(
    http: aiohttp.ClientSession, location: str, digest: Digest, data: bytes
) -> None:
    join = "&" if "?" in location else "?"
    async with http.put(f"{location}{join}digest={digest}", data=data) as answer:
        assert answer.status == 201, await answer.text()


async def push_blob(http: aiohttp.ClientSession, repository: str, data: bytes) -> Digest:
    digest = Digest.of(data)
    await finish_upload(http, await start_upload(http, repository), digest, data)
    return digest


async def push_manifest(
    http: aiohttp.ClientSession, repository: str, reference: str, *layers: bytes
) -> Digest:
    def entry(media_type: str, content: bytes) -> dict[str, object]:
        digest = str(Digest.of(content))
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": entry(OCI_CONFIG, CONFIG),
            "layers": [entry(OCI_LAYER, layer) for layer in layers],
        }
    ).encode()
    headers = {"Content-Type": OCI_MANIFEST}
    url = f"/v2/{repository}/manifests/{reference}"
    async with http.put(url, data=body, headers=headers) as answer:
        assert answer.status == 201, await answer.text()
    return Digest.of(body)


async def push_image(
    http: aiohttp.ClientSession, repository: str, tag: str, *layers: bytes
) -> Digest:
    for data in (CONFIG, *layers):
        await push_blob(http, repository, data)
    return await push_manifest(http, repository, tag, *layers)


async def delete(http: aiohttp.ClientSession, path: str) -> None:
    async with http.delete(path) as answer:
        assert answer.status == 202, await answer.text()


async def status(http: aiohttp.ClientSession, path: str) -> int:
    async with http.get(path) as answer:
        await answer.read()
        return answer.status


# -- what an operator does ----------------------------------------------------------------------


@dataclass
class Run:
    """One call of ``shoal gc``."""

    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        assert self.status == 0, self.errors
        return json.loads(self.output)

    def removed(self) -> set[str]:
        """Digests that some origin removed, or would remove."""
        sweeps = self.document["origins"].values()
        return {item["digest"] for sweep in sweeps for item in sweep["items"]}


def shoal_gc(cluster: RunningCluster, *options: str) -> Run:
    argv = [sys.executable, "-m", "shoal", "gc", "--config", str(cluster.config_path("proxy-0"))]
    done = subprocess.run(
        [*argv, *options], capture_output=True, text=True, timeout=60, check=False
    )
    return Run(done.returncode, done.stdout, done.stderr)


async def collect(cluster: RunningCluster, *options: str) -> Run:
    return await asyncio.to_thread(shoal_gc, cluster, "--json", *options)


async def collect_again_and_again(cluster: RunningCluster, http: aiohttp.ClientSession) -> None:
    """What `shoal gc` does, without a pause, until it is cancelled."""
    while True:
        for services in (cluster.build_indexes, cluster.origins):
            for service in services:
                async with http.post(f"{service}/internal/gc") as answer:
                    assert answer.status == 200, await answer.text()


def holders(cluster: RunningCluster, digest: Digest) -> list[str]:
    """The origins that have a file of the blob."""
    names = [f"origin-{n}" for n in range(len(cluster.origins))]
    return [name for name in names if blob_path(cluster, name, digest).exists()]


def blob_path(cluster: RunningCluster, origin: str, digest: Digest) -> Path:
    folder = cluster.data_dir(origin) / "blobs" / digest.algorithm / digest.hex[:2]
    return folder / digest.hex


async def until_everywhere(cluster: RunningCluster, *digests: Digest) -> None:
    """Wait for the copies beyond the write quorum."""
    async with asyncio.timeout(20):
        while any(len(holders(cluster, digest)) < 3 for digest in digests):  # noqa: ASYNC110 -- other processes
            await asyncio.sleep(0.02)


# -- tests --------------------------------------------------------------------------------------


async def test_what_nothing_reaches_goes_from_all_origins_and_nothing_else(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    own, shared = os.urandom(200_000), os.urandom(100_000)
    gone = await push_image(http, "team/gone", "v1", own, shared)
    await push_image(http, "team/stays", "v1", shared)
    await until_everywhere(cluster, gone, Digest.of(own), Digest.of(shared))
    before = await collect(cluster, "--grace", "0s", "--dry-run")
    assert not before.removed() & {str(gone), str(Digest.of(own)), str(Digest.of(shared))}

    await delete(http, f"/v2/team/gone/manifests/{gone}")
    dry = await collect(cluster, "--grace", "0s", "--dry-run")
    assert dry.removed() >= {str(gone), str(Digest.of(own))}
    assert str(Digest.of(shared)) not in dry.removed()
    marked = {
        (item["repository"], item["name"])
        for report in dry.document["build_indexes"].values()
        for item in report["items"]
    }
    assert marked >= {("team/gone", str(Digest.of(data))) for data in (own, shared, CONFIG)}
    assert len(holders(cluster, gone)) == len(holders(cluster, Digest.of(own))) == 3

    real = await collect(cluster, "--grace", "0s")
    assert real.removed() == dry.removed()
    assert real.document["freed"] == dry.document["freed"] >= 3 * len(own)
    for digest in (gone, Digest.of(own)):
        assert holders(cluster, digest) == []
        for origin in cluster.origins:
            async with http.head(f"{origin}/internal/blobs/{digest}") as answer:
                assert answer.status == 404
    assert len(holders(cluster, Digest.of(shared))) == 3
    assert await status(http, "/v2/team/stays/manifests/v1") == 200
    assert await status(http, f"/v2/team/stays/blobs/{Digest.of(shared)}") == 200
    assert await status(http, f"/v2/team/gone/blobs/{Digest.of(shared)}") == 404

    again = await collect(cluster, "--grace", "0s")
    assert again.removed() == set()


async def test_a_deleted_tag_leaves_the_manifest_to_those_who_pin_it(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    layer = os.urandom(50_000)
    digest = await push_image(http, "team/pinned", "v1", layer)
    await delete(http, "/v2/team/pinned/manifests/v1")
    run = await collect(cluster, "--grace", "0s")
    assert not run.removed() & {str(digest), str(Digest.of(layer))}
    assert await status(http, "/v2/team/pinned/manifests/v1") == 404
    assert await status(http, f"/v2/team/pinned/manifests/{digest}") == 200
    assert await status(http, f"/v2/team/pinned/blobs/{Digest.of(layer)}") == 200


async def test_the_text_names_each_item_with_its_reason(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    orphan = await push_blob(http, "team/orphan", os.urandom(10_000))
    await until_everywhere(cluster, orphan)
    run = await asyncio.to_thread(shoal_gc, cluster, "--grace", "0s", "--dry-run")
    assert run.status == 0, run.errors
    assert (
        f"would delete link to blob team/orphan@{orphan}: no manifest of the repository "
        "references this blob"
    ) in run.output
    assert f"would remove blob {orphan} (9.8 KiB) on 127.0.0.1:" in run.output
    assert "on 3 origins, would free" in run.output
    within = await asyncio.to_thread(shoal_gc, cluster, "--grace", "1h", "--dry-run")
    assert str(orphan) not in within.output


async def test_a_blob_of_the_generic_api_stays(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(2_000_000)
    digest = Digest.of(data)
    url = f"{cluster.origins[0]}/namespace/files/blobs/{digest}"
    async with http.put(url, data=BytesIO(data)) as answer:
        assert answer.status == 201, await answer.text()
    await until_everywhere(cluster, digest)
    run = await collect(cluster, "--grace", "0s")
    assert str(digest) not in run.removed()
    assert len(holders(cluster, digest)) == 3
    assert all(sweep["kept"] >= 1 for sweep in run.document["origins"].values())


async def test_pushes_that_run_meanwhile_lose_nothing(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    """Mounts of blobs that are just about to go, and an upload that began long before."""
    await push_blob(http, "team/into", CONFIG)
    orphans = [os.urandom(30_000) for _ in range(24)]
    for data in orphans:
        await push_blob(http, "team/from", data)
    slow = os.urandom(60_000)
    location = await start_upload(http, "team/into")
    async with http.patch(location, data=slow[:30_000]) as answer:
        assert answer.status == 202, await answer.text()
        location = answer.headers["Location"]
    # What was pushed is now old enough to go: this waits for time alone.
    await asyncio.sleep(GRACE + 0.5)

    async def mount(n: int, data: bytes) -> bool:
        digest = Digest.of(data)
        url = f"/v2/team/into/blobs/uploads/?mount={digest}&from=team/from"
        async with http.post(url) as answer:
            assert answer.status in {201, 202}, await answer.text()
            mounted = answer.status == 201
        for content in (CONFIG, *(() if mounted else (data,))):
            await push_blob(http, "team/into", content)
        await push_manifest(http, "team/into", f"v{n}", data)
        return mounted

    collecting = asyncio.create_task(collect_again_and_again(cluster, http))
    mounted = await asyncio.gather(*(mount(n, data) for n, data in enumerate(orphans)))
    collecting.cancel()
    with suppress(asyncio.CancelledError):
        await collecting
    assert (await collect(cluster)).status == 0
    for n, data in enumerate(orphans):
        where = f"{n}: mounted {mounted[n]}"
        assert await status(http, f"/v2/team/into/manifests/v{n}") == 200, where
        assert await status(http, f"/v2/team/into/blobs/{Digest.of(data)}") == 200, where
        assert len(holders(cluster, Digest.of(data))) >= 2, where

    await finish_upload(http, location, Digest.of(slow), slow[30_000:])
    await push_manifest(http, "team/into", "slow", slow)
    assert await status(http, f"/v2/team/into/blobs/{Digest.of(slow)}") == 200


async def test_nothing_is_removed_while_a_build_index_is_down(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    orphan = await push_blob(http, "team/orphan", os.urandom(20_000))
    await until_everywhere(cluster, orphan)
    await asyncio.to_thread(cluster.kill, "build-index-1")
    try:
        run = await asyncio.to_thread(shoal_gc, cluster, "--grace", "0s")
        assert run.status == 1
        assert cluster.build_indexes[1].removeprefix("http://") in run.errors
        assert "no origin was asked" in run.errors
        async with http.post(f"{cluster.origins[0]}/internal/gc?grace=0s") as answer:
            report = await answer.json()
        assert report["removed"] == 0
        assert cluster.build_indexes[1].removeprefix("http://") in report["stopped"]
        assert len(holders(cluster, orphan)) == 3
    finally:
        await asyncio.to_thread(cluster.restart, "build-index-1")
    assert str(orphan) in (await collect(cluster, "--grace", "0s")).removed()
    assert holders(cluster, orphan) == []
