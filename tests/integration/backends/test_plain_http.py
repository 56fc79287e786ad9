# SPDX-License-Identifier: Apache-2.0
"""Plain HTTP, read-only, against a small server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import encode_basic_auth, web
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from shoal.backend.base import BlobName, TagName, TagsOf
from shoal.backend.config import HttpBackendConfig
from shoal.backend.plain_http import PlainHttpBackend
from shoal.model.digest import Digest
from shoal.web.client import HttpClient
from shoal.web.failures import Rejected, Unreachable
from tests.integration.backends.contract import (
    REPOSITORY,
    BodyContract,
    DeniedContract,
    Place,
    ReadContract,
    ReadOnlyContract,
    RemoteContract,
    blob,
    deadline,
    read,
)

LAYOUT = "blobs/{algorithm}/{hex}"
SECRET = "pass-word"


class Server:
    def __init__(self) -> None:
        self.cut_after: int | None = None
        self.stalled = False
        self.ranges = True
        self.sized = True
        self.head = True
        self.redirect = ""
        self.files: dict[str, bytes] = {}
        self.authorized: list[str | None] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.stalled:
            await asyncio.Event().wait()
        self.authorized.append(request.headers.get("Authorization"))
        if self.redirect:
            return web.Response(status=302, headers={"Location": self.redirect + request.path})
        if request.method == "HEAD" and not self.head:
            return web.Response(status=405)
        if request.path not in self.files:
            return web.Response(status=404)
        body = self.files[request.path]
        part = request.http_range
        status, headers = 200, {}
        if self.ranges and part.start is not None and body:
            if part.start >= len(body):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(body)}"})
            stop = min(len(body), len(body) if part.stop is None else part.stop)
            headers = {"Content-Range": f"bytes {part.start}-{stop - 1}/{len(body)}"}
            body, status = body[part.start : stop], 206
        if self.sized:
            headers["Content-Length"] = str(len(body))
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        if self.cut_after is not None:
            await response.write(body[: self.cut_after])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(body)
        return response


@pytest.fixture
async def servers() -> AsyncIterator[list[tuple[Server, str]]]:
    async with AsyncExitStack() as stack:
        running = []
        for _ in range(2):
            server = Server()
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", server.handle)
            listening = await stack.enter_async_context(TestServer(app, host="127.0.0.1"))
            running.append((server, str(listening.make_url("")).rstrip("/")))
        yield running


@pytest.fixture
def server(servers: list[tuple[Server, str]]) -> Server:
    return servers[0][0]


def opened(http: HttpClient, url: str) -> PlainHttpBackend:
    config = HttpBackendConfig(
        kind="http",
        url=f"{url}/storage",
        username="shoal",
        password=SecretStr(SECRET),
        blob_path=LAYOUT,
    )
    return PlainHttpBackend(config, http)


class TestPlainHttp(ReadContract, ReadOnlyContract, RemoteContract, BodyContract, DeniedContract):
    @pytest.fixture(params=["ranges", "no ranges"])
    def place(
        self,
        servers: list[tuple[Server, str]],
        http: HttpClient,
        refusing: str,
        request: pytest.FixtureRequest,
    ) -> Place:
        server, url = servers[0]
        server.ranges = request.param == "ranges"
        return Place(
            opened(http, url),
            faults=server,
            dead=opened(http, "http://127.0.0.1:1"),
            denied=opened(http, refusing),
            secret=SECRET,
        )

    async def stored(self, place: Place, content: bytes) -> BlobName:
        assert isinstance(place.faults, Server)
        digest = Digest.of(content)
        place.faults.files[f"/storage/blobs/sha256/{digest.hex}"] = content
        return BlobName(REPOSITORY, digest)

    async def test_a_server_without_head_is_asked_by_get(
        self, place: Place, server: Server
    ) -> None:
        server.head = False
        name = await self.stored(place, b"1234")
        assert await place.backend.stat(name, deadline=deadline()) == 4

    async def test_a_server_that_does_not_say_the_size_is_no_storage(
        self, place: Place, server: Server
    ) -> None:
        server.sized = server.ranges = False
        name = await self.stored(place, b"1234")
        with pytest.raises(Unreachable, match="Content-Length"):
            await place.backend.stat(name, deadline=deadline())
        with pytest.raises(Unreachable, match="Content-Length"):
            await read(place.backend, name)

    async def test_it_lists_nothing(self, place: Place) -> None:
        with pytest.raises(Rejected, match="cannot list"):
            await place.backend.list(TagsOf(REPOSITORY), deadline=deadline())

    async def test_a_tag_is_read_from_the_layout_of_distribution(
        self, place: Place, server: Server
    ) -> None:
        folder = f"/storage/docker/registry/v2/repositories/{REPOSITORY}/_manifests/tags"
        server.files[f"{folder}/v1/current/link"] = b"sha256:abc"
        assert await read(place.backend, TagName(REPOSITORY, "v1")) == b"sha256:abc"

    async def test_a_redirect_is_followed_and_credentials_stay(
        self, place: Place, servers: list[tuple[Server, str]]
    ) -> None:
        (first, _), (second, url) = servers
        name = await self.stored(place, b"moved")
        second.files = first.files
        first.redirect = url
        assert await read(place.backend, name) == b"moved"
        assert first.authorized == [encode_basic_auth("shoal", SECRET)]
        assert second.authorized == [None]

    async def test_redirects_that_go_round_are_left(
        self, place: Place, servers: list[tuple[Server, str]]
    ) -> None:
        servers[0][0].redirect = servers[0][1]
        with pytest.raises(Rejected, match="redirects"):
            await read(place.backend, blob(b"round"))
