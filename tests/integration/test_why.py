# SPDX-License-Identifier: Apache-2.0
"""``shoal why`` tells of pulls through the agents of a real cluster."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from typing import Any

import aiohttp
import pytest

from shoal.bench.client import RegistryConnection, download
from shoal.cluster.sample import SampleImage, make_image, make_layer
from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST
from tests.cluster import RunningCluster

NAME = "team/explained"
SIZES = (20 << 20, 3 << 20)


async def why(image: str, agent: str, *options: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal", "why", image, "--agent", agent, *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="module")
def image(cluster: RunningCluster) -> SampleImage:
    """An image of two layers, pushed as ``v1``."""
    layers = [make_layer(cluster.folder / f"layer-{size}", size) for size in SIZES]
    image = make_image(tuple(layers))
    with RegistryConnection(cluster.proxy) as registry:
        for layer in image.layers:
            registry.push_blob(NAME, layer.path, str(layer.digest))
        config = f"sha256:{hashlib.sha256(image.config).hexdigest()}"
        registry.push_blob(NAME, image.config, config)
        registry.put_manifest(NAME, "v1", image.manifest, OCI_MANIFEST)
    return image


def pull(agent: str, image: SampleImage) -> None:
    """As a container runtime does: the tag, the manifest by its digest, config and layers."""
    base = f"{agent}/v2/{NAME}"
    download(f"{base}/manifests/v1")
    download(f"{base}/manifests/{Digest.of(image.manifest)}")
    for digest in (Digest.of(image.config), *(layer.digest for layer in image.layers)):
        download(f"{base}/blobs/{digest}")


async def explained(cluster: RunningCluster, agent: int) -> dict[str, Any]:
    """The report as soon as no download runs any more, which end after the client has all."""
    url = f"{cluster.agents[agent].admin}/why/{NAME}:v1"
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            async with http.get(url) as answer:
                assert answer.status == 200, await answer.text()
                report: dict[str, Any] = await answer.json()
            if all(blob["status"] != "fetching" for blob in report["blobs"]):
                return report


async def test_a_pull_is_explained_blob_by_blob(
    cluster: RunningCluster, image: SampleImage
) -> None:
    await asyncio.to_thread(pull, cluster.agents[0].registry, image)
    report = await explained(cluster, 0)
    assert report["digest"] == str(Digest.of(image.manifest))
    assert report["lookup_s"] > 0
    assert report["manifests"][0]["source"] in {"memory", "origins"}
    sizes = {str(layer.digest): layer.size for layer in image.layers}
    sizes[str(Digest.of(image.config))] = len(image.config)
    for blob in report["blobs"]:
        assert (blob["status"], blob["in_pull"]) == ("fetched", True)
        assert blob["size"] == sizes.pop(blob["digest"])
        assert sum(source["bytes"] for source in blob["sources"]) >= blob["size"]
        assert blob["sent"] == blob["size"]
        assert 0 < blob["join_s"] < blob["first_piece_s"] <= blob["download_s"]
        assert blob["asked_at_s"] <= blob["first_byte_at_s"] <= blob["last_byte_at_s"]
        parts = ("join_s", "pieces_s", "verification_s", "placing_s")
        assert sum(blob[part] for part in parts) == pytest.approx(blob["download_s"], abs=1e-6)
        waited = sum(source["waited_s"] for source in blob["sources"])
        assert waited == pytest.approx(blob["pieces_s"], abs=1e-6)
        assert max(blob["download_s"], blob["last_byte_at_s"]) <= report["total_s"]
    assert not sizes
    assert {source["kind"] for source in report["sources"]} <= {"origin", "http"}
    status, out, err = await why(f"{NAME}:v1", cluster.agents[0].admin, "--json")
    assert status == 0, err
    printed = json.loads(out)
    assert (printed["blobs"], printed["verdict"]) == (report["blobs"], report["verdict"])


async def test_bytes_from_peers_are_told_from_those_of_origins(
    cluster: RunningCluster, image: SampleImage
) -> None:
    for agent in (0, 1):
        await asyncio.to_thread(pull, cluster.agents[agent].registry, image)
    await explained(cluster, 1)
    status, out, err = await why(f"some.registry:5000/{NAME}:v1", cluster.agents[1].admin)
    assert status == 0, err
    text = out.splitlines()
    assert text[0].startswith(f"{NAME}:v1, pulled ")
    assert " % from " in text[1]
    assert sum(line.startswith("sha256:") for line in text) >= 3
    assert any(line.startswith("SOURCE") for line in text)


async def test_a_pull_from_the_cache_is_said_to_be_one(
    cluster: RunningCluster, image: SampleImage
) -> None:
    await asyncio.to_thread(pull, cluster.agents[0].registry, image)
    await explained(cluster, 0)
    await asyncio.to_thread(pull, cluster.agents[0].registry, image)
    report = await explained(cluster, 0)
    assert {blob["status"] for blob in report["blobs"]} == {"cached"}
    assert report["verdict"].startswith("nothing was fetched: ")


@pytest.mark.usefixtures("image")
async def test_what_was_not_pulled_through_this_agent_is_an_error(cluster: RunningCluster) -> None:
    for name in (f"{NAME}:v2", "team/never", f"{NAME}@{Digest.of(os.urandom(8))}"):
        status, out, err = await why(name, cluster.agents[0].admin, "--json")
        assert (status, out) == (1, "")
        assert "was not pulled through this agent since it started" in err.splitlines()[-1]


async def test_what_is_no_image_is_refused(cluster: RunningCluster) -> None:
    status, _, err = await why("Not/An/Image", cluster.agents[0].admin)
    assert status == 1
    assert "is not a repository name" in err.splitlines()[-1]
