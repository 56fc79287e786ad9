# SPDX-License-Identifier: Apache-2.0
"""What only a backend has is pulled while it still comes from there: nobody waits for the whole."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from shoal.web.failures import CallFailed
from shoal.web.serving import listening
from tests.cluster import RunningCluster

NAME = "team/app"
ROOT = "/docker/registry/v2"
PATIENCE = 60.0


@dataclass
class SlowBucket:
    """A bucket in the layout of distribution over plain HTTP; one blob comes in two halves."""

    files: dict[str, bytes] = field(default_factory=dict)
    slow: str = ""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    breaks: int = 0
    """How often the slow blob's body ends after its first half."""
    gets: Counter[str] = field(default_factory=Counter)

    def put(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        self.files[f"{ROOT}/blobs/sha256/{digest.hex[:2]}/{digest.hex}/data"] = content
        return digest

    def image(self, layer: bytes) -> Digest:
        """An image of one layer, tagged ``v1``; the layer is slow."""
        config = b"{}"
        digests = self.put(config), self.put(layer)
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": str(digests[0]), "size": 2},
                "layers": [{"mediaType": OCI_LAYER, "digest": str(digests[1]), "size": len(layer)}],
            }
        ).encode()
        root = self.put(manifest)
        repository = f"{ROOT}/repositories/{NAME}"
        self.files[f"{repository}/_manifests/tags/v1/current/link"] = str(root).encode()
        self.files[f"{repository}/_manifests/revisions/sha256/{root.hex}/link"] = str(root).encode()
        self.slow = digests[1].hex
        return digests[1]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        data = self.files.get(request.path)
        if data is None:
            return web.Response(status=404)
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(len(data))})
        self.gets[request.path] += 1
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        if self.slow in request.path:
            await response.write(data[: len(data) // 2])
            await self.gate.wait()
            if self.breaks:
                self.breaks -= 1
                assert request.transport is not None
                request.transport.abort()
                return response
            data = data[len(data) // 2 :]
        await response.write(data)
        return response


@asynccontextmanager
async def cluster_of(folder: Path, bucket: SlowBucket) -> AsyncIterator[RunningCluster]:
    """Two agents in a cluster whose backend the bucket is."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", bucket.answer)
    async with listening([(app, "127.0.0.1:0")], grace=1) as [address]:
        backends = {"backends": [{"kind": "http", "url": f"http://{address}", "match": ".*"}]}
        config = {"origin": backends, "build-index": backends}
        starting = RunningCluster.start(folder, agents=2, config=config)
        cluster = await asyncio.to_thread(starting.__enter__)
        try:
            yield cluster
        finally:
            bucket.gate.set()
            await asyncio.to_thread(starting.__exit__, None, None, None)


@asynccontextmanager
async def client() -> AsyncIterator[HttpClient]:
    http = HttpClient(user_agent="test")
    try:
        yield http
    finally:
        await http.close()


class Reading:
    """One client that reads the layer from an agent."""

    def __init__(self, registry: RegistryClient, layer: Digest) -> None:
        self._registry = registry
        self._layer = layer
        self.data = bytearray()
        self.grown = asyncio.Condition()

    async def read(self) -> None:
        await self._registry.get_manifest(NAME, "v1")
        async with self._registry.stream_blob(NAME, self._layer) as answer:
            async for chunk in answer.chunks():
                self.data += chunk
                async with self.grown:
                    self.grown.notify_all()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE), self.grown:
            await self.grown.wait_for(lambda: len(self.data) >= count)


async def test_agents_give_the_first_half_while_the_backend_still_holds_the_second(
    tmp_path: Path,
) -> None:
    bucket = SlowBucket()
    content = os.urandom(8_000_000)
    layer = bucket.image(content)
    async with cluster_of(tmp_path, bucket) as cluster, client() as http:
        readings = [Reading(RegistryClient(http, a.registry), layer) for a in cluster.agents]
        reading = [asyncio.create_task(it.read()) for it in readings]
        for it in readings:
            await it.has(3_000_000)
            assert len(it.data) <= len(content) // 2
        bucket.gate.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*reading)
        assert all(it.data == content for it in readings)
        assert {count for path, count in bucket.gets.items() if layer.hex in path} == {1}


async def test_a_backend_that_breaks_off_in_the_middle_is_asked_again_and_nothing_wrong_is_given(
    tmp_path: Path,
) -> None:
    bucket = SlowBucket(breaks=1)
    content = os.urandom(8_000_000)
    layer = bucket.image(content)
    async with cluster_of(tmp_path, bucket) as cluster, client() as http:
        registry = RegistryClient(http, cluster.agents[0].registry)
        first = Reading(registry, layer)
        reading = asyncio.create_task(first.read())
        await first.has(3_000_000)
        bucket.gate.set()
        async with asyncio.timeout(PATIENCE):
            [outcome] = await asyncio.gather(reading, return_exceptions=True)
        assert content.startswith(first.data)
        if outcome is not None:
            assert isinstance(outcome, CallFailed)
        again = Reading(registry, layer)
        async with asyncio.timeout(PATIENCE):
            await again.read()
        assert again.data == content
        assert bucket.breaks == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_another_origin_fetches_what_a_lost_one_was_fetching(
    tmp_path: Path, number: signal.Signals
) -> None:
    bucket = SlowBucket()
    content = os.urandom(8_000_000)
    layer = bucket.image(content)
    async with cluster_of(tmp_path, bucket) as cluster, client() as http:
        registry = RegistryClient(http, cluster.agents[0].registry)
        first = Reading(registry, layer)
        reading = asyncio.create_task(first.read())
        await first.has(3_000_000)
        [leader] = [
            f"origin-{n}"
            for n in range(3)
            if any((cluster.data_dir(f"origin-{n}") / "incoming").iterdir())
        ]
        pid = cluster.pids[leader]
        os.kill(pid, number)
        began = time.monotonic()
        bucket.gate.set()
        async with asyncio.timeout(PATIENCE):
            [outcome] = await asyncio.gather(reading, return_exceptions=True)
        assert content.startswith(first.data)
        if outcome is not None:
            assert isinstance(outcome, CallFailed)
            again = Reading(registry, layer)
            async with asyncio.timeout(PATIENCE):
                await again.read()
            assert again.data == content
        assert time.monotonic() - began < 40
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)


async def test_what_the_backend_has_damaged_is_given_by_nobody_and_replaced_by_a_push(
    tmp_path: Path,
) -> None:
    bucket = SlowBucket()
    content = os.urandom(8_000_000)
    layer = bucket.image(content)
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    path = f"{ROOT}/blobs/sha256/{layer.hex[:2]}/{layer.hex}/data"
    bucket.files[path] = wrong + os.urandom(1_000_000)
    async with cluster_of(tmp_path, bucket) as cluster, client() as http:
        readings = [Reading(RegistryClient(http, a.registry), layer) for a in cluster.agents]
        reading = [asyncio.create_task(it.read()) for it in readings]
        for it in readings:
            await it.has(3_000_000)
        bucket.gate.set()
        async with asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*reading, return_exceptions=True)
        assert all(isinstance(outcome, CallFailed) for outcome in outcomes)
        # It is put right; what was remembered of the wrong one does not outlive its time.
        bucket.files[path] = content
        async with asyncio.timeout(PATIENCE):
            for agent in cluster.agents:
                while True:
                    again = Reading(RegistryClient(http, agent.registry), layer)
                    try:
                        await again.read()
                    except CallFailed:
                        await asyncio.sleep(1.0)
                        continue
                    assert again.data == content
                    break
