# SPDX-License-Identifier: Apache-2.0
"""All origins are gone: what some hosts have pulled the others can still pull."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from tests.cluster import RunningCluster
from tests.integration.test_tracker_loss import until
from tests.integration.test_write_back import CONFIG, NAME, image

SIZES = (1, 50_000, 3_000_000)


async def pull(registry: RegistryClient, layers: Sequence[bytes]) -> bytes:
    """Pull as a runtime does, and compare every layer; the manifest."""
    pulled = await registry.get_manifest(NAME, "v1")
    for content in (CONFIG, *layers):
        async with registry.stream_blob(NAME, Digest.of(content)) as answer:
            assert b"".join([chunk async for chunk in answer.chunks()]) == content
    return pulled.body


async def told(http: aiohttp.ClientSession, tracker: str, digest: Digest) -> None:
    """Return when the tracker knows an agent that has the blob, and what the blob is."""

    async def known() -> Any:
        async with http.get(f"{tracker}/blobs/{digest}/peers") as answer:
            return await answer.json()

    await until(known, lambda found: bool(found["seeds"] and found["origins"]))


async def test_an_image_that_a_host_has_is_pulled_by_others_without_any_origin(
    tmp_path: Path,
) -> None:
    layers = [os.urandom(size) for size in SIZES]
    manifest = image(*layers)
    with RunningCluster.start(tmp_path, agents=2) as cluster:
        http = HttpClient(user_agent="test")
        try:
            proxy = RegistryClient(http, cluster.proxy)
            for content in (CONFIG, *layers):
                await proxy.push_blob(NAME, Digest.of(content), content)
            await proxy.put_manifest(NAME, "v1", manifest, OCI_MANIFEST)
            first, second = (RegistryClient(http, agent.registry) for agent in cluster.agents)
            assert await pull(first, layers) == manifest
            async with aiohttp.ClientSession() as session:
                for content in (manifest, CONFIG, *layers):
                    await told(session, cluster.trackers[0], Digest.of(content))
            for number in range(len(cluster.origins)):
                await asyncio.to_thread(cluster.kill, f"origin-{number}")
            async with asyncio.timeout(20):
                assert await pull(second, layers) == manifest
        finally:
            await http.close()
