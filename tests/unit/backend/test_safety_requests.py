# SPDX-License-Identifier: Apache-2.0
"""Hostile registries on real sockets: what they redirect to, and what they try to learn.

Here all servers are on loopback. An upstream that the config names may be there; what it redirects
to may not, unless the config allows that.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import ThreadedResolver, web

from shoal.backend.base import BlobName
from shoal.backend.config import RegistryBackendConfig
from shoal.backend.registry import RegistryBackend
from shoal.backend.upstreams import UpstreamConfig, UpstreamNames
from shoal.model.digest import Digest
from shoal.web.failures import Rejected
from tests.unit.backend.registry_server import (
    BASIC,
    PASSWORD,
    USER,
    FakeRegistry,
    error,
    no_requests,
    soon,
    upstream_of,
)

HERE, THERE = "up.example.com/team/app", "team/app"
CONTENT = b"a layer" * 1000
BLOB = BlobName(HERE, Digest.of(CONTENT))


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        yield running


@pytest.fixture
async def storage() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        running.add_blob(THERE, CONTENT)
        yield running


def redirecting(registry: FakeRegistry, location: str, status: int = 307) -> None:
    @registry.hook
    async def redirect(request: web.Request) -> web.StreamResponse | None:
        if request.query.get("again") == "no":
            return None
        return web.Response(status=status, headers={"Location": location})


async def read(backend: RegistryBackend) -> bytes:
    async with backend.get(BLOB, deadline=soon()) as content:
        return b"".join([chunk async for chunk in content.chunks()])


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/iam",
        "http://10.0.0.1/x",
        "http://127.0.0.1:1/x",
        "http://0x7f.1:1/x",
        "http://localhost:1/x",
        "http://[::1]:1/x",
        "http://[::ffff:127.0.0.1]:1/x",
        "http://0.0.0.0:1/x",
        "http://100.64.1.1/x",
        "http://224.0.0.1/x",
    ],
)
async def test_a_redirect_to_an_address_that_is_not_public_is_refused(
    registry: FakeRegistry, location: str
) -> None:
    redirecting(registry, location)
    async with upstream_of(registry) as backend:
        with pytest.raises(Rejected, match="allow_private"):
            await read(backend)


async def test_the_address_that_dns_gave_is_the_one_that_is_checked(
    registry: FakeRegistry, storage: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def resolve(
        _: ThreadedResolver, host: str, port: int = 0, **_family: object
    ) -> list[dict[str, object]]:
        asked.append(host)
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": port,
                "family": socket.AF_INET,
                "proto": 6,
                "flags": 0,
            }
        ]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    redirecting(registry, f"http://cdn.example.com:{storage.base_port}/v2/x")
    async with upstream_of(registry) as backend:
        with no_requests(storage), pytest.raises(Rejected, match="allow_private"):
            await read(backend)
    assert asked == ["cdn.example.com"]


async def test_allowed_private_storage_gets_no_credentials(
    registry: FakeRegistry, storage: FakeRegistry
) -> None:
    @registry.hook
    async def basic(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != BASIC:
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})
        location = f"{storage.base}{request.path}?X-Amz-Signature=a%2Fb"
        return web.Response(status=307, headers={"Location": location})

    async with upstream_of(
        registry, username=USER, password=PASSWORD, allow_private=True
    ) as backend:
        assert await read(backend) == CONTENT
        assert await read(backend) == CONTENT
    assert {it.authorization for it in storage.seen} == {None}
    assert storage.seen[0].path.endswith("?X-Amz-Signature=a%2Fb")
    assert registry.seen[-1].authorization == BASIC


async def test_a_challenge_of_the_storage_is_not_answered(
    registry: FakeRegistry, storage: FakeRegistry
) -> None:
    @storage.hook
    async def greedy(_: web.Request) -> web.StreamResponse | None:
        return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="give me"'})

    redirecting(registry, f"{storage.base}/x")
    async with upstream_of(
        registry, username=USER, password=PASSWORD, allow_private=True
    ) as backend:
        with pytest.raises(Rejected):
            await read(backend)
    assert {it.authorization for it in storage.seen} == {None}


async def test_redirects_within_the_registry_keep_the_credentials(
    registry: FakeRegistry,
) -> None:
    registry.add_blob(THERE, CONTENT)
    path = f"/v2/{THERE}/blobs/{BLOB.digest}"
    redirecting(registry, f"{path}?again=no", status=302)

    @registry.hook
    async def basic(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != BASIC:
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})
        return None

    async with upstream_of(registry, username=USER, password=PASSWORD) as backend:
        assert await read(backend) == CONTENT


async def test_redirects_end(registry: FakeRegistry) -> None:
    redirecting(registry, "/v2/round/and/round")
    async with upstream_of(registry) as backend:
        with pytest.raises(Rejected, match="more than 5 redirects"):
            await read(backend)
    assert len(registry.seen) == 6


async def test_errors_do_not_show_signed_urls(
    registry: FakeRegistry, storage: FakeRegistry
) -> None:
    @storage.hook
    async def denied(_: web.Request) -> web.StreamResponse | None:
        return web.Response(status=403, text="denied")

    redirecting(registry, f"{storage.base}/x?X-Amz-Signature=top-secret")
    async with upstream_of(registry, allow_private=True) as backend:
        with pytest.raises(Rejected) as failure:
            await read(backend)
    assert "top-secret" not in f"{failure.value} {failure.value!r}"


async def test_a_registry_that_a_client_named_must_be_public(registry: FakeRegistry) -> None:
    names = UpstreamNames({"_default": UpstreamConfig(timeout=5)})
    name = f"localhost__{registry.base_port}/team/app"
    remote = names.remote(name)
    assert remote is not None
    backend = RegistryBackend.upstream(remote)
    with no_requests(registry), pytest.raises(Rejected, match="allow_private"):
        await backend.head_tag(name, "v1", soon())
    await backend.close()


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_an_upload_is_not_sent_to_an_address_that_is_not_public(
    registry: FakeRegistry, storage: FakeRegistry, method: str
) -> None:
    @registry.hook
    async def away(request: web.Request) -> web.StreamResponse | None:
        if request.method == "HEAD":
            return error(404, "BLOB_UNKNOWN")
        if request.method == "POST" and method == "POST":
            return web.Response(status=307, headers={"Location": f"{storage.base}/x"})
        return web.Response(status=202, headers={"Location": f"{storage.base}/x"})

    backend = RegistryBackend.of(RegistryBackendConfig(kind="registry", url=registry.base))
    with no_requests(storage), pytest.raises(Rejected):
        await backend.put(BlobName("a/b", BLOB.digest), CONTENT, deadline=soon())
    await backend.close()
