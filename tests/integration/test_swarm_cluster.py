# SPDX-License-Identifier: Apache-2.0
"""A real cluster whose peers speak TLS and keep to rate limits."""

from __future__ import annotations

import io
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from shoal.model.digest import Digest
from tests.cluster import AgentUrls, RunningCluster

RATE = 8_000_000
SIZE = 24_000_000
TIMEOUT = aiohttp.ClientTimeout(total=60)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        yield session


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Three origins and three agents with certificates; the second agent has an ingress limit.

    The third one has no certificate.
    """
    folder = tmp_path_factory.mktemp("secured")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "host.pem"))
    host = str(folder / "host.pem")
    tls = {"peer": {"tls": {"ca": str(folder / "ca.pem"), "certificate": host, "key": host}}}
    config: dict[str, Any] = {
        "origin": tls,
        "agent": tls,
        "agent-1": {"peer": {"ingress": f"{RATE}B/s"}},
        "agent-2": {"peer": {"tls": {"enabled": False}}},
    }
    with RunningCluster.start(folder / "cluster", agents=3, config=config) as running:
        yield running


async def upload(http: aiohttp.ClientSession, cluster: RunningCluster, data: bytes) -> Digest:
    digest = Digest.of(data)
    url = f"{cluster.origins[0]}/namespace/team%2Fblobs/blobs/{digest}"
    async with http.put(url, data=io.BytesIO(data)) as answer:
        assert answer.status == 201, await answer.text()
    return digest


async def pull(http: aiohttp.ClientSession, agent: AgentUrls, digest: Digest) -> bytes:
    async with http.get(f"{agent.admin}/namespace/team%2Fblobs/blobs/{digest}") as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def swarm(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with http.get(f"{url}/swarm") as answer:
        assert answer.status == 200
        view: dict[str, Any] = await answer.json()
        return view


async def test_a_blob_comes_through_the_swarm_over_tls(
    secured: RunningCluster, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(3_000_000)
    digest = await upload(http, secured, data)
    assert await pull(http, secured.agents[0], digest) == data
    view = await swarm(http, secured.agents[0].admin)
    assert view["peer"]["tls"] is True
    assert sum(link["received"] for link in view["links"]) == len(data)
    assert {link["origin"] for link in view["links"]} == {True}


async def test_an_ingress_limit_holds(secured: RunningCluster, http: aiohttp.ClientSession) -> None:
    data = os.urandom(SIZE)
    digest = await upload(http, secured, data)
    began = time.monotonic()
    assert await pull(http, secured.agents[1], digest) == data
    took = time.monotonic() - began
    assert 0.9 * SIZE / RATE < took < 1.6 * SIZE / RATE
    view = await swarm(http, secured.agents[1].admin)
    assert view["limits"]["ingress"] == RATE
    assert sum(link["received"] for link in view["links"]) < 1.1 * SIZE


async def test_origins_show_their_swarm(
    secured: RunningCluster, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(3_000_000)
    digest = await upload(http, secured, data)
    assert await pull(http, secured.agents[0], digest) == data
    sent = 0
    for origin in secured.origins:
        view = await swarm(http, origin)
        if any(blob["digest"] == str(digest) for blob in view["blobs"]):
            sent += sum(link["sent"] for link in view["links"])
    assert sent >= len(data)


async def test_an_agent_without_a_certificate_gets_its_blobs_all_the_same(
    secured: RunningCluster, http: aiohttp.ClientSession
) -> None:
    """No peer talks to it, so it takes them from the origins over HTTP."""
    data = os.urandom(3_000_000)
    digest = await upload(http, secured, data)
    assert await pull(http, secured.agents[2], digest) == data
    assert (await swarm(http, secured.agents[2].admin))["links"] == []


def test_a_certificate_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    junk = str(tmp_path / "junk.pem")
    config = {"agent": {"peer": {"tls": {"ca": junk, "certificate": junk, "key": junk}}}}
    with (
        pytest.raises(AssertionError, match=r"peer\.tls\.ca"),
        RunningCluster.start(tmp_path / "cluster", agents=1, config=config),
    ):
        pass
