# SPDX-License-Identifier: Apache-2.0
"""Repositories of upstreams, by a build-index over HTTP and a registry that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from shoal.backend.upstreams import UpstreamConfig
from shoal.buildindex.client import BuildIndexClient
from shoal.model.digest import Digest
from shoal.model.errors import Denied
from shoal.ring.config import HostsConfig
from shoal.web.failures import CallFailed
from tests.unit.backend.registry_server import FakeRegistry
from tests.unit.buildindex.index_node import Node, image, serving, soon

REPOSITORY = "up.example.com/team/app"
CONFIG, LAYER = Digest.of(b"config"), Digest.of(b"layer")


@dataclass
class Cluster:
    node: Node
    registry: FakeRegistry
    client: BuildIndexClient

    def publish(self, tag: str, **extra: Any) -> Digest:
        """Push to the upstream; the origins can fetch it."""
        body = image(CONFIG, LAYER, **extra)
        self.node.origins.store(body)
        return self.registry.add_manifest("team/app", body, tag)

    async def resolve(self, tag: str) -> Digest | None:
        return await self.client.get_tag(REPOSITORY, tag, deadline=soon())

    def asked(self, tag: str) -> int:
        return len(self.registry.requests("HEAD", f"/manifests/{tag}"))


@asynccontextmanager
async def cluster(folder: Path, **settings: Any) -> AsyncIterator[Cluster]:
    registry = FakeRegistry()
    async with registry.running():
        upstream = UpstreamConfig.model_validate(
            {"url": registry.base, "allow_private": True, **settings}
        )
        async with serving(folder, upstreams={"up.example.com": upstream}) as node:
            client = BuildIndexClient(node.http, HostsConfig(hosts=[node.address]))
            yield Cluster(node, registry, client)


async def test_a_tag_is_asked_for_once_while_it_is_fresh_and_brings_what_it_needs(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as it:
        digest = it.publish("v1")
        assert [await it.resolve("v1") for _ in range(3)] == [digest] * 3
        assert it.asked("v1") == 1
        assert await it.client.has_blob(REPOSITORY, LAYER, deadline=soon())
        assert await it.client.find_manifest(REPOSITORY, digest, deadline=soon())


async def test_a_blob_of_one_repository_of_an_upstream_is_not_one_of_another(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as it:
        it.publish("v1")
        await it.resolve("v1")
        other = "up.example.com/team/other"
        assert not await it.client.has_blob(other, LAYER, deadline=soon())
        assert not await it.client.has_blob("team/app", LAYER, deadline=soon())


async def test_a_thousand_that_want_a_missing_tag_are_one_request_to_the_upstream(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as it:
        asked = {"manifests": [[REPOSITORY, "none"]], "through": True}
        url = f"http://{it.node.address}/internal/lookup"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask() -> object:
                async with session.post(url, json=asked) as answer:
                    assert answer.status == 200
                    return (await answer.json())["manifests"]

            answers = await asyncio.gather(*(ask() for _ in range(1000)))
        assert answers == [[None]] * 1000
        assert it.asked("none") == 1
        assert await it.resolve("none") is None
        assert it.asked("none") == 1


async def test_a_tag_that_moved_is_followed_when_it_is_not_fresh_any_more(tmp_path: Path) -> None:
    async with cluster(tmp_path, fresh=0.0) as it:
        it.publish("v1")
        await it.resolve("v1")
        moved = it.publish("v1", annotations={"of": "the second"})
        assert await it.resolve("v1") == moved
        assert await it.resolve("v1") == moved
        assert it.asked("v1") == 3


async def test_a_tag_that_is_gone_upstream_is_gone(tmp_path: Path) -> None:
    async with cluster(tmp_path, fresh=0.0) as it:
        it.publish("v1")
        await it.resolve("v1")
        del it.registry.tags["team/app"]["v1"]
        assert await it.resolve("v1") is None


async def test_a_stale_tag_is_served_while_the_upstream_is_down_up_to_a_limit(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, fresh=0.0, stale=3600.0) as it:
        digest = it.publish("v1")
        await it.resolve("v1")

        async def down(_: web.Request) -> web.StreamResponse:
            return web.Response(status=503)

        it.registry.hook(down)
        assert await it.resolve("v1") == digest
        it.node.ahead += 7200
        with pytest.raises(CallFailed, match="503"):
            await it.resolve("v1")
        with pytest.raises(CallFailed):
            await it.resolve("never-seen")


async def test_a_tag_stays_while_the_upstream_names_a_manifest_that_it_does_not_have(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, fresh=0.0) as it:
        digest = it.publish("v1")
        await it.resolve("v1")
        # As a HEAD of one replica and a GET of another one are: the manifest is nowhere.
        it.registry.add_manifest("team/app", image(CONFIG), "v1")
        assert await it.resolve("v1") == digest
        it.registry.tags["team/app"]["v2"] = it.registry.tags["team/app"]["v1"]
        with pytest.raises(CallFailed, match="has no such one"):
            await it.resolve("v2")


@pytest.mark.parametrize("status, kind", [(401, Denied), (503, CallFailed)])
async def test_what_is_remembered_of_a_failure_is_what_was_found_out(
    status: int, kind: type[Exception], tmp_path: Path
) -> None:
    async with cluster(tmp_path) as it:

        async def failing(_: web.Request) -> web.StreamResponse:
            return web.Response(status=status)

        it.registry.hook(failing)
        for _ in range(3):
            with pytest.raises(kind, match=str(status)):
                await it.resolve("v1")
        assert it.asked("v1") == 1


async def test_a_repository_of_an_upstream_is_not_written(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        digest = it.publish("v1")
        await it.resolve("v1")
        with pytest.raises(Denied, match=r"up\.example\.com has in team/app"):
            await it.client.link_blob(REPOSITORY, LAYER, deadline=soon())
        with pytest.raises(Denied):
            await it.client.delete_tag(REPOSITORY, "v1", deadline=soon())
        with pytest.raises(Denied):
            await it.client.delete_manifest(REPOSITORY, digest, deadline=soon())
        assert await it.resolve("v1") == digest


async def test_what_the_upstream_lists_is_listed(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        it.publish("v1")
        it.publish("v2")
        assert await it.client.tags(REPOSITORY, deadline=soon()) == ["v1", "v2"]
