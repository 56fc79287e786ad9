# SPDX-License-Identifier: Apache-2.0
"""Requests that name another registry: ``?ns=`` and prefixes of the path."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from shoal.model.digest import Digest
from shoal.model.manifest import FoundManifest
from shoal.registry.app import registry_routes
from shoal.registry.headers import NAMESPACE
from shoal.web.deadline import Deadline
from shoal.web.server import application
from tests.unit.registry_http import DIGEST, Client, Registry, code


class Asked(Registry):
    """A registry that notes which repositories it is asked about, and has nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.repositories_asked: list[str] = []

    async def find_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        self.repositories_asked.append(repository)
        return await super().find_manifest(repository, reference, deadline)

    async def stat_blob(self, repository: str, digest: Digest, deadline: Deadline) -> int:
        self.repositories_asked.append(repository)
        return await super().stat_blob(repository, digest, deadline)


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
async def client(asked: Asked) -> AsyncIterator[Client]:
    async with serving(asked, ["docker.io", "localhost:5000"]) as running:
        yield running


def serving(asked: Asked, upstreams: list[str]) -> Client:
    async def ready() -> list[str]:
        return []

    app: web.Application = application("test", readiness=ready)
    registry_routes(app, asked, asked, upstreams=upstreams)
    return TestClient(TestServer(app))


@pytest.mark.parametrize(
    "path, repository",
    [
        ("library/alpine/manifests/3?ns=docker.io", "docker.io/library/alpine"),
        ("alpine/manifests/3?ns=docker.io", "docker.io/library/alpine"),
        ("docker.io/library/alpine/manifests/3", "docker.io/library/alpine"),
        ("docker.io/alpine/manifests/3", "docker.io/library/alpine"),
        ("team/app/manifests/v1?ns=localhost:5000", "localhost__5000/team/app"),
        ("team/app/manifests/v1?ns=nosuch.example.com", "team/app"),
        ("team/app/manifests/v1", "team/app"),
        (f"team/app/blobs/{DIGEST}?ns=docker.io", "docker.io/team/app"),
    ],
)
async def test_a_pull_is_of_the_repository_that_the_registry_and_the_path_name(
    client: Client, asked: Asked, path: str, repository: str
) -> None:
    answer = await client.head(f"/v2/{path}")
    assert answer.status == 404
    assert asked.repositories_asked == [repository]
    if "ns=" in path:
        assert answer.headers[NAMESPACE] == path.partition("ns=")[2]


async def test_the_default_upstream_takes_every_registry_but_this_one(asked: Asked) -> None:
    async with serving(asked, ["_default"]) as client:
        host = f"{client.host}:{client.port}"
        await client.get(f"/v2/team/app/manifests/v1?ns={host}")
        await client.get("/v2/team/app/manifests/v1?ns=any.example.com")
    assert asked.repositories_asked == ["team/app", "any.example.com/team/app"]


async def test_without_upstreams_a_namespace_says_nothing(asked: Asked) -> None:
    async with serving(asked, []) as client:
        await client.get("/v2/team/app/manifests/v1?ns=docker.io")
    assert asked.repositories_asked == ["team/app"]


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "docker.io/library/alpine/blobs/uploads/"),
        ("PUT", "docker.io/library/alpine/manifests/3"),
        ("DELETE", "docker.io/library/alpine/manifests/3"),
        ("DELETE", f"docker.io/library/alpine/blobs/{DIGEST}"),
        ("POST", "library/alpine/blobs/uploads/?ns=docker.io"),
        ("PUT", "library/alpine/manifests/3?ns=docker.io"),
        ("DELETE", "library/alpine/manifests/3?ns=docker.io"),
    ],
)
async def test_nothing_is_pushed_to_an_upstream(client: Client, method: str, path: str) -> None:
    assert await code(await client.request(method, f"/v2/{path}")) == (403, "DENIED")
