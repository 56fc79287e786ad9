# SPDX-License-Identifier: Apache-2.0
"""The client against registries that do not do what they should."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from shoal.web.failures import NotFound, Rejected, Unreachable
from tests.unit.registry_http import Registry, entry, image

BODY = b"whatever"
DIGEST = Digest.of(BODY)

NAME = "a/b"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def client_of(handler: Handler) -> AsyncIterator[RegistryClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with client_at(app) as client:
        yield client


@asynccontextmanager
async def client_at(app: web.Application) -> AsyncIterator[RegistryClient]:
    http = HttpClient(user_agent="test")
    try:
        async with TestServer(app) as server:
            yield RegistryClient(http, f"http://{server.host}:{server.port}/")
    finally:
        await http.close()


async def test_a_manifest_with_another_digest_is_not_returned() -> None:
    async def lying(_request: web.Request) -> web.Response:
        headers = {"Docker-Content-Digest": str(Digest.of(b"other")), "Content-Type": OCI_MANIFEST}
        return web.Response(body=BODY, headers=headers)

    async with client_of(lying) as client:
        with pytest.raises(Rejected):
            await client.get_manifest("a/b", "v1")
        with pytest.raises(Rejected):
            await client.get_manifest("a/b", Digest.of(b"third"))
        assert (await client.get_manifest("a/b", DIGEST)).body == BODY


async def test_a_location_with_state_is_used_as_it_is() -> None:
    seen: list[str] = []

    async def registry(request: web.Request) -> web.Response:
        seen.append(f"{request.method} {request.path_qs}")
        status = {"POST": 202, "PATCH": 202, "PUT": 201}[request.method]
        await request.read()
        location = f"{request.url.origin()}/elsewhere?_state=a%2Fb%3D"
        return web.Response(status=status, headers={"Location": location})

    async with client_of(registry) as client:
        assert await client.push_blob("a/b", DIGEST, BODY)
    assert seen == [
        "POST /v2/a/b/blobs/uploads/",
        "PATCH /elsewhere?_state=a%2Fb%3D",
        f"PUT /elsewhere?_state=a%2Fb%3D&digest={DIGEST}",
    ]


async def test_a_range_that_is_not_honoured_is_an_error() -> None:
    async def whole(_request: web.Request) -> web.Response:
        return web.Response(body=BODY)

    async with client_of(whole) as client:
        with pytest.raises(Rejected):
            async with client.stream_blob("a/b", DIGEST, start=3):
                pass
        async with client.stream_blob("a/b", DIGEST) as answer:
            assert b"".join([chunk async for chunk in answer.chunks()]) == BODY


async def test_a_registry_that_is_not_there() -> None:
    http = HttpClient(user_agent="test")
    with pytest.raises(Unreachable):
        await RegistryClient(http, "http://127.0.0.1:1").ping()
    await http.close()


async def test_listings_are_followed_to_their_end(registry: Registry) -> None:
    subject = entry(OCI_MANIFEST, b"subject")
    registry.hold(b"{}", NAME)
    async with client_at(registry.application()) as client:
        pushed = []
        for number in range(1100):
            body = image(subject=subject, artifactType=f"a/{number % 2}", x=number)
            pushed.append(Digest.of(body))
            await client.put_manifest(NAME, f"v{number:04}", body, OCI_MANIFEST)
            registry.hold(b"x", f"some/{number:04}")
        assert await client.tags(NAME) == [f"v{number:04}" for number in range(1100)]
        assert len(await client.repositories()) == 1101
        found = await client.referrers(NAME, Digest.of(b"subject"))
        assert [it.digest for it in found] == sorted(pushed)
        found = await client.referrers(NAME, Digest.of(b"subject"), "a/1")
        assert [it.digest for it in found] == sorted(pushed[1::2])


async def test_tags_are_set_with_a_push_by_digest(registry: Registry) -> None:
    registry.hold(b"{}", NAME)
    body = image()
    async with client_at(registry.application()) as client:
        await client.put_manifest(NAME, Digest.of(body), body, OCI_MANIFEST, tags=["v1", "v2"])
        assert (await client.get_manifest(NAME, "v2")).body == body
        await client.delete_manifest(NAME, "v2")
        with pytest.raises(NotFound):
            await client.delete_manifest(NAME, "v2")
        await client.delete_manifest(NAME, Digest.of(body))
        await client.delete_blob(NAME, Digest.of(b"{}"))
        assert await client.stat_blob(NAME, Digest.of(b"{}")) is None


async def test_a_registry_that_ignores_tags_is_found_out() -> None:
    async def old(_request: web.Request) -> web.Response:
        return web.Response(status=201, headers={"Docker-Content-Digest": str(DIGEST)})

    async with client_of(old) as client:
        assert await client.put_manifest(NAME, DIGEST, BODY, OCI_MANIFEST) == DIGEST
        with pytest.raises(Rejected, match="v1"):
            await client.put_manifest(NAME, DIGEST, BODY, OCI_MANIFEST, tags=["v1"])
