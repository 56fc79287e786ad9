# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shoal.buildindex.client import BuildIndexClient
from shoal.origin.client import OriginCluster
from shoal.proxy.readiness import Readiness
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.web.client import HttpClient

NOBODY = "127.0.0.1:1"
"""A port on which nothing listens."""


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


@pytest.fixture
async def healthy() -> AsyncIterator[str]:
    """A service that is well, by ``host:port``."""

    async def well(_request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/health", well)
    app.router.add_get("/readiness", well)
    async with TestServer(app) as server:
        yield f"{server.host}:{server.port}"


def readiness(
    http: HttpClient, origins: list[str], indexes: list[str], *, write_quorum: int
) -> Readiness:
    ring = OriginsConfig(hosts=origins, write_quorum=write_quorum, replicas=2)
    index = BuildIndexClient(http, HostsConfig(hosts=indexes))
    return Readiness(OriginCluster(http, ring), index)


async def test_a_write_quorum_and_one_build_index_are_enough(
    http: HttpClient, healthy: str
) -> None:
    ready = readiness(http, [NOBODY, healthy], [NOBODY, healthy], write_quorum=1)
    assert await ready.missing() == []


async def test_what_is_missing_is_named(http: HttpClient, healthy: str) -> None:
    ready = readiness(http, [healthy, NOBODY], [NOBODY], write_quorum=2)
    quorum, origin, index = await ready.missing()
    assert quorum == "1 origin(s) answer, the write quorum is 2"
    assert origin.startswith(f"origin {NOBODY}: ")
    assert index.startswith(f"build-index {NOBODY}: ")
