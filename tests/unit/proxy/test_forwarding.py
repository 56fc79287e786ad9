# SPDX-License-Identifier: Apache-2.0
"""Upload requests that reach another proxy than the one that holds the session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer, unused_port
from yarl import URL

from shoal.model.digest import Digest
from shoal.proxy import forwarding
from shoal.proxy.forwarding import FORWARDED, UploadForwarding
from shoal.proxy.upload_ids import UploadId
from shoal.proxy.uploads import Uploads
from shoal.registry.app import registry_routes
from shoal.registry.ports import Chunk, Reader, Writer
from shoal.store.uploads import UploadSessions
from shoal.web.deadline import Deadline
from shoal.web.server import application

NAME = "team/app"
UPLOADS = f"/v2/{NAME}/blobs/uploads/"
BLOB = bytes(range(256)) * 64
DIGEST = Digest.of(BLOB)
SESSION = "0123456789abcdef" * 2

Client = TestClient[web.Request, web.Application]


class UploadsAlone:
    """The part of a proxy that takes uploads; what is finished is kept in memory."""

    def __init__(self, uploads: Uploads) -> None:
        self.uploads = uploads
        self.blobs: dict[Digest, bytes] = {}

    async def start_upload(self, repository: str, algorithm: str = "sha256") -> str:
        return await self.uploads.start(repository, algorithm)

    async def upload_size(self, repository: str, upload: str) -> int:
        return (await self.uploads.get(repository, upload)).size

    async def append(self, repository: str, upload: str, chunk: Chunk) -> int:
        async with self.uploads.exclusive(repository, upload) as session:
            return await self.uploads.append(session, chunk)

    async def finish(
        self,
        repository: str,
        upload: str,
        digest: Digest,
        chunk: Chunk | None,
        deadline: Deadline,
    ) -> None:
        async with self.uploads.exclusive(repository, upload) as session:
            if chunk is not None:
                await self.uploads.append(session, chunk)
            await self.uploads.verify(session, digest)
            self.blobs[digest] = await asyncio.to_thread(session.path.read_bytes)
            await self.uploads.discard(session)

    async def cancel(self, repository: str, upload: str) -> None:
        async with self.uploads.exclusive(repository, upload) as session:
            await self.uploads.discard(session)


class Proxies:
    """Proxies on loopback that may know of each other."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.ports = {name: unused_port() for name in ("a", "b")}
        self.takers: dict[str, UploadsAlone] = {}

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    async def start(
        self,
        name: str,
        *neighbours: str,
        known_as: str | None = None,
        idle_timeout: float = 5.0,
    ) -> Client:
        own = known_as or self.address(name)
        sessions = UploadSessions(self.folder / name)
        taker = UploadsAlone(Uploads(sessions, idle_timeout=idle_timeout, name=own))
        self.takers[name] = taker

        async def ready() -> list[str]:
            return []

        app = application("proxy", readiness=ready)
        hosts = [self.address(neighbour) for neighbour in neighbours]
        UploadForwarding(own, hosts, idle_timeout=idle_timeout).install(app)
        registry_routes(app, cast("Reader", None), cast("Writer", taker))
        return await self.serve(name, app)

    async def serve(self, name: str, app: web.Application) -> Client:
        client = TestClient(TestServer(app, port=self.ports[name]))
        return await self.stack.enter_async_context(client)


@pytest.fixture
async def proxies(tmp_path: Path) -> AsyncIterator[Proxies]:
    async with AsyncExitStack() as stack:
        yield Proxies(tmp_path, stack)


@pytest.fixture
async def pair(proxies: Proxies) -> tuple[Client, Client]:
    """Two proxies that know of each other; uploads are started at the second."""
    return await proxies.start("a", "b"), await proxies.start("b", "a")


async def begin(owner: Client, content: bytes = b"") -> str:
    answer = await owner.post(UPLOADS)
    assert answer.status == 202
    location = answer.headers["Location"]
    if content:
        assert (await owner.patch(location, data=content)).status == 202
    return location


async def code(answer: ClientResponse) -> tuple[int, str]:
    document = await answer.json()
    (error,) = document["errors"]
    return answer.status, error["code"]


async def in_parts(*parts: bytes, gate: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if gate is not None:
        await gate.wait()


async def test_an_upload_goes_on_at_another_proxy(
    pair: tuple[Client, Client], proxies: Proxies
) -> None:
    other, owner = pair
    location = await begin(owner)
    answer = await other.patch(location, data=BLOB[:1000])
    assert answer.status == 202
    assert answer.headers["Location"] == location
    assert answer.headers["Range"] == "0-999"
    assert location.endswith(answer.headers["Docker-Upload-UUID"])
    answer = await owner.patch(location, data=BLOB[1000:3000])
    assert answer.headers["Range"] == "0-2999"
    answer = await other.get(location)
    assert (answer.status, answer.headers["Range"]) == (204, "0-2999")
    answer = await other.put(
        f"{location}?digest={DIGEST}", data=in_parts(BLOB[3000:5000], BLOB[5000:])
    )
    assert answer.status == 201
    assert answer.headers["Location"] == f"/v2/{NAME}/blobs/{DIGEST}"
    assert answer.headers["Docker-Content-Digest"] == str(DIGEST)
    assert proxies.takers["b"].blobs == {DIGEST: BLOB}
    assert list((proxies.folder / "a").iterdir()) == []
    assert list((proxies.folder / "b").iterdir()) == []


async def test_an_upload_is_cancelled_at_another_proxy(pair: tuple[Client, Client]) -> None:
    other, owner = pair
    location = await begin(owner, b"abc")
    assert (await other.delete(location)).status == 204
    for client in pair:
        assert await code(await client.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize(
    "method, query, headers, expected",
    [
        ("PATCH", "", {"Content-Range": "9-18"}, (416, "BLOB_UPLOAD_INVALID")),
        ("PATCH", "", {"Content-Range": "0-98"}, (400, "SIZE_INVALID")),
        ("PUT", "", {}, (400, "DIGEST_INVALID")),
        ("PUT", f"?digest={DIGEST}", {}, (400, "DIGEST_INVALID")),
    ],
)
async def test_errors_come_back_as_the_owner_gives_them(
    pair: tuple[Client, Client],
    method: str,
    query: str,
    headers: dict[str, str],
    expected: tuple[int, str],
) -> None:
    other, owner = pair
    answers = []
    for client in (other, owner):
        location = await begin(owner, b"abc")
        answer = await client.request(method, location + query, data=b"0123456789", headers=headers)
        assert await code(answer) == expected
        body = (await answer.text()).replace(location.rpartition("/")[2], "ID")
        kept = {"Range", "Location", "Content-Type", "Docker-Distribution-Api-Version", "Allow"}
        answers.append((body, {name for name in answer.headers if name in kept}))
    assert answers[0] == answers[1]


async def test_a_chunk_that_is_refused_at_once_need_not_be_sent_to_its_end(
    pair: tuple[Client, Client],
) -> None:
    other, owner = pair
    location = await begin(owner, b"abc")
    gate = asyncio.Event()
    headers = {"Content-Range": "9-99", "Content-Length": "91"}
    async with asyncio.timeout(5):
        answer = await other.patch(location, data=in_parts(b"01234", gate=gate), headers=headers)
        assert await code(answer) == (416, "BLOB_UPLOAD_INVALID")
    assert answer.headers["Range"] == "0-2"
    answer.close()
    assert (await other.get(location)).headers["Range"] == "0-2"


async def test_two_writers_at_two_proxies(pair: tuple[Client, Client]) -> None:
    other, owner = pair
    location = await begin(owner)
    gate = asyncio.Event()
    first = asyncio.create_task(other.patch(location, data=in_parts(b"first", gate=gate)))
    await until(owner, location, "0-4")
    assert await code(await owner.patch(location, data=b"second")) == (409, "BLOB_UPLOAD_INVALID")
    assert await code(await other.put(f"{location}?digest={DIGEST}")) == (
        409,
        "BLOB_UPLOAD_INVALID",
    )
    gate.set()
    assert (await first).status == 202
    assert (await other.get(location)).headers["Range"] == "0-4"


async def test_what_came_before_the_client_vanished_is_kept(pair: tuple[Client, Client]) -> None:
    other, owner = pair
    location = await begin(owner)
    _, writer = await asyncio.open_connection(other.host, other.port)
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n"
    writer.write(head.encode() + BLOB[:1000])
    await writer.drain()
    await until(owner, location, "0-999")
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        # The owner notices the end of the connection in its own time.
        while (answer := await other.patch(location, data=BLOB[1000:])).status == 409:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert answer.headers["Range"] == f"0-{len(BLOB) - 1}"
    assert (await other.put(f"{location}?digest={DIGEST}")).status == 201


async def test_a_client_that_stalls_is_told_so_by_the_owner(proxies: Proxies) -> None:
    other = await proxies.start("a", "b", idle_timeout=0.1)
    owner = await proxies.start("b", idle_timeout=0.1)
    location = await begin(owner)
    gate = asyncio.Event()
    answer = await other.patch(location, data=in_parts(b"abc", gate=gate))
    assert await code(answer) == (408, "BLOB_UPLOAD_INVALID")
    answer.close()
    assert (await owner.get(location)).headers["Range"] == "0-2"


async def test_a_client_that_stalls_longer_than_the_owner_bears_is_dropped_here(
    proxies: Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "MARGIN", 0.0)
    other = await proxies.start("a", "b", idle_timeout=0.1)
    owner = await proxies.start("b", idle_timeout=30)
    location = await begin(owner)
    gate = asyncio.Event()
    answer = await other.patch(location, data=in_parts(b"abc", gate=gate))
    assert await code(answer) == (408, "BLOB_UPLOAD_INVALID")
    answer.close()
    await until(owner, location, "0-2")


async def test_a_proxy_that_is_down_is_named(proxies: Proxies) -> None:
    other, owner = await proxies.start("a", "b"), await proxies.start("b", "a")
    location = await begin(owner, b"abc")
    await owner.close()
    for method in ("PATCH", "PUT", "GET", "DELETE"):
        answer = await other.request(method, location, data=b"x" if method == "PATCH" else None)
        assert await code(answer) == (503, "UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) > 0
        text = await answer.text()
        assert proxies.address("b") in text
        assert "resume it when that proxy is back, or start the upload again" in text
    again = await proxies.start("b", "a")
    assert (await other.get(location)).headers["Range"] == "0-2"
    assert (await again.get(location)).headers["Range"] == "0-2"


async def test_a_proxy_that_dies_in_the_middle_is_named(proxies: Proxies) -> None:
    async def dies(request: web.Request) -> web.StreamResponse:
        await request.content.readany()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    other, location = await before(proxies, dies)
    answer = await other.patch(location, data=BLOB)
    assert await code(answer) == (503, "UNAVAILABLE")
    assert proxies.address("b") in await answer.text()


async def test_a_proxy_that_does_not_answer_is_waited_for_as_long_as_the_caller_does(
    proxies: Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "MARGIN", 0.0)
    gate = asyncio.Event()

    async def hangs(request: web.Request) -> web.StreamResponse:
        await request.read()
        await gate.wait()
        return web.Response()

    other, location = await before(proxies, hangs)
    headers = {Deadline.HEADER: "100"}
    for method in ("PATCH", "GET"):
        async with asyncio.timeout(5):
            answer = await other.request(method, location, headers=headers)
        assert await code(answer) == (503, "UNAVAILABLE")
        assert "did not answer in time" in await answer.text()
    gate.set()


async def test_an_answer_without_end_is_not_taken_in(proxies: Proxies) -> None:
    async def pours(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await response.write(bytes(forwarding.MAX_ANSWER))
        return response

    other, location = await before(proxies, pours)
    answer = await other.get(location)
    assert await code(answer) == (503, "UNAVAILABLE")


async def test_headers_pass_but_for_those_of_the_connection(proxies: Proxies) -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def notes(request: web.Request) -> web.StreamResponse:
        seen.append((request.raw_path, dict(request.headers), await request.read()))
        return web.Response(
            status=202,
            body=b'{"errors": []}',
            headers={
                "Content-Type": "application/json",
                "X-Kept": "1",
                "Connection": "X-Dropped",
                "X-Dropped": "1",
                "Proxy-Authenticate": "x",
            },
        )

    other, location = await before(proxies, notes)
    sent = {
        "Authorization": "Bearer t",
        "Content-Range": "0-2",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "TE": "trailers",
        "Content-Type": "application/x-thing",
        "Shoal-Deadline-Ms": "7000",
    }
    url = URL(f"{location}?_state=a%2Fb", encoded=True)
    answer = await other.patch(url, data=b"abc", headers=sent)
    assert answer.status == 202
    assert answer.headers["X-Kept"] == "1"
    assert "X-Dropped" not in answer.headers
    assert "Proxy-Authenticate" not in answer.headers
    assert await answer.json() == {"errors": []}
    ((path, headers, body),) = seen
    assert path == f"{location}?_state=a%2Fb"
    assert body == b"abc"
    assert headers["Authorization"] == "Bearer t"
    assert headers["Content-Type"] == "application/x-thing"
    assert headers["Content-Range"] == "0-2"
    assert headers["Content-Length"] == "3"
    assert headers["Host"] == proxies.address("b")
    assert headers[FORWARDED] == proxies.address("a")
    assert 0 < int(headers["Shoal-Deadline-Ms"]) <= 7000
    assert not {"X-Hop", "TE", "Transfer-Encoding"} & headers.keys()


async def test_nothing_is_handed_on_twice(proxies: Proxies) -> None:
    # Each takes the other for the owner: the second goes by a name that nobody uses for it.
    other = await proxies.start("a", "b", known_as="proxy-a:5000")
    owner = await proxies.start("b", "a", known_as="proxy-b:5000")
    location = f"{UPLOADS}{UploadId.of(SESSION, NAME, proxies.address('b'))}"
    assert await code(await other.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")
    location = await begin(owner)
    answer = await other.get(location)
    assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert "none of this one's neighbours" in await answer.text()


async def test_a_request_that_was_handed_on_is_answered_here(
    pair: tuple[Client, Client],
) -> None:
    other, owner = pair
    location = await begin(owner, b"abc")
    answer = await other.get(location, headers={FORWARDED: "127.0.0.1:1"})
    assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_only_ids_that_the_cluster_gave_out_are_handed_on(proxies: Proxies) -> None:
    async def never(_request: web.Request) -> web.StreamResponse:
        raise AssertionError("a request was handed on")

    other, location = await before(proxies, never)
    upload = location.rpartition("/")[2]
    session, binding, owner = upload.split("-")
    for wrong in (
        upload.upper(),
        f"{session}-{binding[::-1]}-{owner}",
        f"{session[::-1]}-{binding}-{owner}",
        f"{session}-{binding}-{'0' * 8}",
        f"{session}-{binding}",
        f"..%2F{upload}",
        "..%2F..%2Fetc%2Fpasswd",
        f"{upload}%00",
        "127.0.0.1:80",
        "x" * 4000,
    ):
        answer = await other.get(f"{UPLOADS}{wrong}")
        assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN"), wrong
    answer = await other.get(location.replace(NAME, "team/other"))
    assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_other_requests_are_answered_here(pair: tuple[Client, Client]) -> None:
    other, owner = pair
    location = await begin(owner)
    assert (await other.get("/v2/")).status == 200
    assert await code(await other.post(location)) == (405, "UNSUPPORTED")
    mine = await begin(other)
    assert mine.rpartition("-")[2] != location.rpartition("-")[2]


async def before(
    proxies: Proxies, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> tuple[Client, str]:
    """Put a proxy before a neighbour that answers everything with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    await proxies.serve("b", app)
    other = await proxies.start("a", "b")
    return other, f"{UPLOADS}{UploadId.of(SESSION, NAME, proxies.address('b'))}"


async def until(client: Client, location: str, received: str) -> None:
    """Wait until a session holds what was sent."""
    async with asyncio.timeout(5):
        while (await client.get(location)).headers["Range"] != received:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
