# SPDX-License-Identifier: Apache-2.0
"""Uploads in the wrong order, cut, doubled, slow, or of another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer

from shoal.model.digest import Digest
from tests.unit.registry_http import (
    ABSENT,
    BLOB,
    DIGEST,
    NAME,
    UPLOADS,
    Client,
    Registry,
    assert_alive,
    code,
    open_upload,
    parsed,
    raw,
)

PART = BLOB[:1000]


def chunk(location: str, body: bytes, *headers: str, method: str = "PATCH") -> bytes:
    lines = [f"{method} {location} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def received(client: Client, location: str) -> str:
    answer = await client.get(location)
    assert answer.status == 204
    return answer.headers["Range"]


async def one_part(client: Client) -> str:
    """An upload that has received the first thousand bytes."""
    location = await open_upload(client)
    assert (await client.patch(location, data=PART)).status == 202
    return location


@pytest.mark.parametrize(
    "first", [pytest.param(1001, id="gap"), pytest.param(999, id="overlap"), 0, 10**18]
)
async def test_a_chunk_that_leaves_a_gap_or_overlaps(client: Client, first: int) -> None:
    location = await one_part(client)
    for method, url in (("PATCH", location), ("PUT", f"{location}?digest={DIGEST}")):
        headers = {"Content-Range": f"{first}-{first + 9}"}
        answer = await client.request(method, url, data=b"0123456789", headers=headers)
        assert await code(answer) == (416, "BLOB_UPLOAD_INVALID")
        assert answer.headers["Range"] == "0-999"
        assert answer.headers["Location"] == location
    assert await received(client, location) == "0-999"
    await assert_alive(client)


async def test_the_last_chunk_sent_again(client: Client) -> None:
    location = await open_upload(client)
    headers = {"Content-Range": "0-999"}
    assert (await client.patch(location, data=PART, headers=headers)).status == 202
    answer = await client.patch(location, data=PART, headers=headers)
    assert await code(answer) == (416, "BLOB_UPLOAD_INVALID")
    answer = await client.put(f"{location}?digest={DIGEST}", data=BLOB[1000:])
    assert answer.status == 201


class Held:
    """A request whose body waits to be finished."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def body(self) -> AsyncIterator[bytes]:
        yield PART
        await self.go_on.wait()
        yield BLOB[1000:]


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
async def test_a_second_request_while_a_patch_runs(
    client: Client, registry: Registry, method: str
) -> None:
    location, held = await open_upload(client), Held()
    first = asyncio.create_task(client.patch(location, data=held.body()))
    await registry.receiving.wait()
    answer = await client.request(method, f"{location}?digest={DIGEST}", data=b"x")
    assert await code(answer) == (409, "BLOB_UPLOAD_INVALID")
    held.go_on.set()
    assert (await first).status == 202
    assert (await client.put(f"{location}?digest={DIGEST}")).status == 201
    assert registry.origins.blobs[DIGEST] == BLOB


async def test_a_second_put(client: Client) -> None:
    location = await open_upload(client)
    assert (await client.put(f"{location}?digest={DIGEST}", data=BLOB)).status == 201
    # Its client may not have seen the answer: what was asked for is so.
    assert (await client.put(f"{location}?digest={DIGEST}")).status == 201
    answer = await client.put(f"{location}?digest={ABSENT}")
    assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_a_put_after_a_delete(client: Client, registry: Registry) -> None:
    location = await one_part(client)
    assert (await client.delete(location)).status == 204
    for method in ("PUT", "PATCH", "GET", "DELETE"):
        answer = await client.request(method, f"{location}?digest={DIGEST}")
        assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert not registry.origins.blobs


async def test_a_session_of_another_repository(client: Client) -> None:
    location = await one_part(client)
    other = location.replace(NAME, "other/name")
    for method in ("PUT", "PATCH", "GET", "DELETE"):
        answer = await client.request(method, f"{other}?digest={DIGEST}", data=BLOB)
        assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert await received(client, location) == "0-999"


async def test_a_range_without_a_length(client: Client) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield PART

    location = await open_upload(client)
    headers = {"Content-Range": "0-999"}
    assert (await client.patch(location, data=body(), headers=headers)).status == 202
    assert await received(client, location) == "0-999"


async def test_a_range_of_another_length_than_the_body(client: Client) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield PART

    for content_range in ("0-499", "0-1999"):
        location = await open_upload(client)
        headers = {"Content-Range": content_range}
        answer = await client.patch(location, data=PART, headers=headers)
        assert await code(answer) == (400, "SIZE_INVALID")
        answer = await client.patch(location, data=body(), headers=headers)
        assert await code(answer) == (400, "SIZE_INVALID")


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_a_length_larger_than_the_body(
    client: Client, registry: Registry, method: str
) -> None:
    location = await open_upload(client)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    target = f"{location}?digest={DIGEST}"
    writer.write(chunk(target, PART, f"Content-Length: {len(BLOB)}", method=method))
    await registry.receiving.wait()
    writer.write_eof()
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()
    assert not registry.origins.blobs
    assert await received(client, location) == "0-999"
    assert (await client.put(f"{location}?digest={DIGEST}", data=BLOB[1000:])).status == 201


async def test_a_length_smaller_than_the_body(client: Client) -> None:
    location = await open_upload(client)
    request = chunk(location, BLOB, "Content-Length: 1000").replace(b"Connection: close\r\n", b"")
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(request)
    async with asyncio.timeout(10):
        answers = parsed(await reader.read())
    writer.close()
    # What follows the body is taken for the next request, which it is not.
    assert answers[-1].status == 400
    assert await received(client, location) in {"0-0", "0-999"}
    await assert_alive(client)


async def test_chunked_encoding_without_a_range(client: Client) -> None:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(BLOB), 100):
            yield BLOB[start : start + 100]

    location = await open_upload(client)
    assert (await client.patch(location, data=body())).status == 202
    assert (await client.put(f"{location}?digest={DIGEST}")).status == 201


@pytest.mark.parametrize(
    "body", [b"xyz\r\n", b"-1\r\nx\r\n0\r\n\r\n", b"fffffffffffffffff\r\nx", b"3\r\nabcdef"]
)
async def test_chunked_encoding_that_is_broken(
    client: Client, registry: Registry, body: bytes
) -> None:
    location = await open_upload(client)
    answer = await raw(client, chunk(location, body, "Transfer-Encoding: chunked"))
    assert answer.status == 400
    await assert_alive(client)
    assert not registry.origins.blobs


async def test_a_chunk_of_no_bytes(client: Client) -> None:
    location = await open_upload(client)
    for _ in range(3):
        answer = await client.patch(location, data=b"")
        assert (answer.status, answer.headers["Range"]) == (202, "0-0")
    answer = await client.patch(location, data=b"", headers={"Content-Range": "0--1"})
    assert await code(answer) == (400, "BLOB_UPLOAD_INVALID")
    empty = Digest.of(b"")
    assert (await client.put(f"{location}?digest={empty}")).status == 201
    assert await (await client.get(f"/v2/{NAME}/blobs/{empty}")).read() == b""


async def test_a_client_that_vanishes_amid_a_body(client: Client, registry: Registry) -> None:
    location = await open_upload(client)
    _, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(chunk(location, PART, f"Content-Length: {len(BLOB)}"))
    await registry.receiving.wait()
    writer.transport.abort()
    async with asyncio.timeout(10):
        while (answer := await client.patch(location, data=b"")).status == 409:  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # what notices is in the server, and tells nobody
    assert answer.headers["Range"] == "0-999"
    assert (await client.put(f"{location}?digest={DIGEST}", data=BLOB[1000:])).status == 201


@pytest.mark.parametrize(
    "upload",
    [
        "x",
        "..",
        "%2e%2e",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%00",
        "0" * 32,
        f"{'0' * 32}-{'0' * 16}",
        "a" * 4000,
        "%ff",
        "_state",
    ],
)
async def test_a_session_that_is_none_or_a_path(
    client: Client, registry: Registry, upload: str
) -> None:
    for method in ("PATCH", "PUT", "GET", "DELETE"):
        request = chunk(f"{UPLOADS}{upload}?digest={DIGEST}", b"", method=method)
        answer = await raw(client, request)
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert not registry.uploads


async def test_a_session_whose_state_was_changed(client: Client) -> None:
    location = await one_part(client)
    for end in ("0", "f"):
        changed = location[:-1] + end
        if changed != location:
            answer = await client.patch(changed, data=b"x")
            assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert await received(client, location) == "0-999"


@pytest.mark.parametrize("way", ["PATCH then PUT", "PUT", "POST"])
async def test_a_wrong_digest_at_the_end_keeps_nothing(
    client: Client, registry: Registry, way: str
) -> None:
    if way == "POST":
        answer = await client.post(f"{UPLOADS}?digest={ABSENT}", data=BLOB)
    else:
        location = await open_upload(client)
        if way != "PUT":
            await client.patch(location, data=BLOB)
        answer = await client.put(f"{location}?digest={ABSENT}", data=BLOB if way == "PUT" else b"")
    assert await code(answer) == (400, "DIGEST_INVALID")
    assert not registry.uploads
    assert not registry.origins.blobs
    for digest in (DIGEST, ABSENT):
        assert (await client.head(f"/v2/{NAME}/blobs/{digest}")).status == 404


async def test_a_client_that_sends_byte_by_byte_holds_up_nobody(
    client: Client, registry: Registry
) -> None:
    slow, quick = await open_upload(client), await open_upload(client)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(chunk(slow, b"", "Content-Length: 50"))
    for byte in BLOB[:49]:
        registry.receiving.clear()
        writer.write(bytes([byte]))
        async with asyncio.timeout(5):
            await registry.receiving.wait()
    assert (await client.put(f"{quick}?digest={DIGEST}", data=BLOB)).status == 201
    writer.write(BLOB[49:50])
    async with asyncio.timeout(5):
        (answer,) = parsed(await reader.read())
    writer.close()
    assert answer.status == 202
    assert answer.headers["range"] == "0-49"


async def test_a_client_that_stalls_is_told_so_and_can_resume() -> None:
    registry = Registry(idle_timeout=0.05)
    async with TestClient(TestServer(registry.application())) as client:
        location = await open_upload(client)
        request = chunk(location, PART, f"Content-Length: {len(BLOB)}")
        answer = await raw(client, request)
        assert (answer.status, answer.code) == (408, "BLOB_UPLOAD_INVALID")
        assert await received(client, location) == "0-999"
        assert (await client.put(f"{location}?digest={DIGEST}", data=BLOB[1000:])).status == 201
