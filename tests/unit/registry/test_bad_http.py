# SPDX-License-Identifier: Apache-2.0
"""What is hardly HTTP, or HTTP used against the server; and ranges of blobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from email import message_from_bytes
from email.message import Message

import pytest
from aiohttp.test_utils import TestClient, TestServer

from shoal.web.ranges import MAX_RANGES
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
    get,
    open_upload,
    push_image,
    raw,
    raw_all,
)

PATH = f"/v2/{NAME}/blobs/{DIGEST}"
HELLO = bytes.fromhex("16030100f5010000f10303") + bytes(range(200))


@pytest.fixture(autouse=True)
def blob(registry: Registry) -> None:
    registry.hold(BLOB, NAME)


async def dropped(client: Client, request: bytes) -> None:
    """The server answers 400, if at all, closes the connection, and serves the others."""
    try:
        answers = await raw_all(client, request)
    except ConnectionResetError:
        answers = []  # closed before it had taken all that was sent
    assert all(answer.status == 400 for answer in answers)
    await assert_alive(client)


async def test_a_tls_hello_on_the_plain_port(client: Client) -> None:
    await dropped(client, HELLO)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v2/ HTTP/9.9",
        b"\x00\x00\x00\x00",
        b"GET /v2/\x00 HTTP/1.1",
        b"BREW /v2/ HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"get /v2/ HTTP/1.1",
    ],
)
async def test_a_request_line_that_is_none(client: Client, request_line: bytes) -> None:
    await dropped(client, request_line + b"\r\nHost: x\r\n\r\n")


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: -1",
        b"Content-Length: +5",
        b"Content-Length: 0x5",
        b"Content-Length: 1, 2",
        b"Transfer-Encoding: gzip, chunked, identity",
        b"Content-Length : 5",
        b"X-Folded: a\r\n b\r\n\tc: d\r\nBad Header: x",
        b"X: a\x00b",
    ],
)
async def test_framing_that_two_servers_could_read_differently(
    client: Client, registry: Registry, header: bytes
) -> None:
    head = f"POST {UPLOADS}?digest={ABSENT} HTTP/1.1\r\nHost: x\r\n".encode()
    await dropped(client, head + header + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert not registry.uploads


async def test_a_megabyte_of_headers(client: Client) -> None:
    many = "".join(f"X-{number}: {'y' * 100}\r\n" for number in range(10_000)).encode()
    await dropped(client, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n")
    long = b"X: " + b"y" * 1_000_000 + b"\r\n"
    await dropped(client, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + long + b"\r\n")
    await dropped(client, b"GET /v2/" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")


@pytest.mark.parametrize("first", [b"", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"])
@pytest.mark.parametrize("begun", [b"", b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_request_that_never_comes_whole(
    registry: Registry, first: bytes, begun: bytes
) -> None:
    server = TestServer(registry.application())
    await server.start_server(keepalive_timeout=0.05)
    async with TestClient(server) as client, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        if first:
            writer.write(first)
            await reader.readuntil(b"{}")
        writer.write(begun)
        assert await reader.read() == b""  # the server did not wait for the rest
        writer.close()
        await assert_alive(client)


async def test_headers_that_trickle_in(registry: Registry) -> None:
    server = TestServer(registry.application())
    await server.start_server(keepalive_timeout=0.1)
    async with TestClient(server) as client, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        closed = asyncio.ensure_future(reader.read())
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n")
        while not closed.done():  # each line comes in time, and the request never does
            writer.write(b"X: y\r\n")
            await asyncio.wait([closed], timeout=0.02)
        with suppress(ConnectionResetError):
            assert closed.result() == b""
        writer.close()
        await assert_alive(client)


async def test_requests_in_a_pipeline_are_answered_in_order(client: Client) -> None:
    keep = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
    paths = [PATH, "/v2/", f"/v2/{NAME}/blobs/{ABSENT}", PATH]
    requests = b"".join(keep % path.encode() for path in paths)
    answers = await raw_all(client, requests + get("/v2/"))
    assert [answer.status for answer in answers] == [200, 200, 404, 200, 200]
    assert [answers[i].body for i in (0, 3)] == [BLOB, BLOB]


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_a_client_that_waits_for_100_continue(client: Client, method: str) -> None:
    location = await open_upload(client)
    target = f"{location}?digest={DIGEST}"
    reader, writer = await asyncio.open_connection(client.host, client.port)
    lines = ("Expect: 100-continue", f"Content-Length: {len(BLOB)}")
    writer.write(get(target, *lines, method=method))
    async with asyncio.timeout(10):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(BLOB)
        answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert answer.split()[1] == (b"202" if method == "PATCH" else b"201")


async def test_an_expectation_that_is_not_known(client: Client) -> None:
    answer = await raw(client, get("/v2/", "Expect: 200-ok"))
    assert answer.status == 417
    await assert_alive(client)


async def test_a_target_in_absolute_form(client: Client) -> None:
    # A server must take it (RFC 9112, section 3.2.2); whose host it names does not matter here.
    for host in ("registry", "169.254.169.254", "localhost:1"):
        assert (await raw(client, get(f"http://{host}{PATH}"))).body == BLOB
    answer = await raw(client, get(f"http://x/v2/{NAME}/../../etc/tags/list"))
    assert (answer.status, answer.code) == (400, "NAME_INVALID")
    for target in ("http://", "http://x", "*", "//x/v2/", "x:80"):
        assert (await raw(client, get(target))).status in {400, 404}
    await assert_alive(client)


async def test_a_host_that_is_not_ours_reaches_no_location(client: Client) -> None:
    for host in ("evil.test", "a, b", "evil.test/path", "[::1", ""):
        request = f"POST {UPLOADS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
        answer = await raw(client, request.encode())
        assert answer.status == 202
        assert answer.headers["location"].startswith(UPLOADS)
    await assert_alive(client)


async def test_a_head_with_a_body(client: Client) -> None:
    request = get(PATH, "Content-Length: 5", method="HEAD") + b"hello"
    answer = await raw(client, request)
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(BLOB)))
    await assert_alive(client)


async def test_a_get_with_a_body(client: Client, registry: Registry) -> None:
    await push_image(client, registry)
    for path in (PATH, f"/v2/{NAME}/manifests/v1", f"/v2/{NAME}/tags/list"):
        assert (await raw(client, get(path, "Content-Length: 5") + b"hello")).status == 200


async def test_a_body_that_never_ends_is_not_kept(client: Client, registry: Registry) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(64 * 1024)

    answer = await client.put(f"/v2/{NAME}/manifests/v1", data=endless())
    assert await code(answer) == (413, "SIZE_INVALID")
    assert not registry.index.manifests


# -- ranges -----------------------------------------------------------------------------------


async def test_a_range_a_hundred_thousand_times(client: Client) -> None:
    ranges = ",".join(["0-0"] * 100_000)
    await dropped(client, get(PATH, f"Range: bytes={ranges}"))
    fits = ",".join(["0-0"] * (MAX_RANGES + 1))
    answer = await raw(client, get(PATH, f"Range: bytes={fits}"))
    assert (answer.status, answer.body) == (200, BLOB)


async def test_ranges_that_overlap_to_more_than_the_blob(client: Client) -> None:
    answer = await raw(client, get(PATH, "Range: bytes=0-,0-,0-"))
    assert (answer.status, answer.body) == (200, BLOB)


@pytest.mark.parametrize("asked", ["-0", "5000-", "4096-4096", "5000-5001,-0", "500-0"])
async def test_a_range_without_a_byte_of_the_blob(client: Client, asked: str) -> None:
    answer = await raw(client, get(PATH, f"Range: bytes={asked}"))
    assert (answer.status, answer.code) == (416, "RANGE_INVALID")
    assert answer.headers["content-range"] == f"bytes */{len(BLOB)}"


async def test_a_suffix_longer_than_the_blob(client: Client) -> None:
    answer = await raw(client, get(PATH, "Range: bytes=-999999"))
    assert (answer.status, answer.body) == (206, BLOB)
    assert answer.headers["content-range"] == f"bytes 0-4095/{len(BLOB)}"


@pytest.mark.parametrize(
    "condition, status",
    [(f'"{DIGEST}"', 206), (f'"{ABSENT}"', 200), (f'W/"{DIGEST}"', 200), ("x", 200)],
)
async def test_a_range_of_what_the_client_has_seen_before(
    client: Client, condition: str, status: int
) -> None:
    answer = await raw(client, get(PATH, "Range: bytes=1-2", f"If-Range: {condition}"))
    assert (answer.status, answer.body) == (status, BLOB[1:3] if status == 206 else BLOB)


@pytest.mark.parametrize(
    "header", ["bytes=", "bytes=a-b", "bytes=0-1;2-3", "items=0-1", "bytes=0-1,x", "0-1"]
)
async def test_a_range_that_is_none_means_the_whole(client: Client, header: str) -> None:
    assert (await raw(client, get(PATH, f"Range: {header}"))).body == BLOB


async def test_range_headers_that_contradict_each_other_mean_the_whole(client: Client) -> None:
    answer = await raw(client, get(PATH, "Range: bytes=0-1", "Range: bytes=2-3"))
    assert (answer.status, answer.body) == (200, BLOB)


async def test_several_ranges_come_in_the_order_asked_for(client: Client) -> None:
    asked = [(4000, 4096), (0, 1), (1000, 3000), (2999, 3001)]
    header = ", ".join(f"{start}-{stop - 1}" for start, stop in asked) + ",9000-"
    answer = await client.get(PATH, headers={"Range": f"bytes={header}"})
    assert answer.status == 206
    assert "Content-Range" not in answer.headers
    body = await answer.read()
    assert answer.headers["Content-Length"] == str(len(body))
    kind = answer.headers["Content-Type"]
    assert kind.startswith("multipart/byteranges; boundary=")
    parts = parts_of(kind, body)
    assert [part.get_payload(decode=True) for part in parts] == [BLOB[a:b] for a, b in asked]
    assert [part["Content-Range"] for part in parts] == [
        f"bytes {start}-{stop - 1}/{len(BLOB)}" for start, stop in asked
    ]
    assert {part["Content-Type"] for part in parts} == {"application/octet-stream"}


def parts_of(kind: str, body: bytes) -> list[Message]:
    parsed = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    parts = parsed.get_payload()
    assert isinstance(parts, list)
    return [part for part in parts if isinstance(part, Message)]


async def test_one_range_that_is_left_of_several_comes_plain(client: Client) -> None:
    answer = await client.get(PATH, headers={"Range": "bytes=9000-9001, 1-2"})
    assert (answer.status, await answer.read()) == (206, BLOB[1:3])
    assert answer.headers["Content-Range"] == f"bytes 1-2/{len(BLOB)}"


async def test_head_knows_no_range(client: Client) -> None:
    answer = await client.head(PATH, headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(BLOB)))
