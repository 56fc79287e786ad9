# SPDX-License-Identifier: Apache-2.0
"""Bad input to a real proxy: the spec's error or a closed connection, and pushes go on."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from tests.cluster import RunningCluster

NAME = "team/app"
CONTENT = random.Random(7).randbytes(1_500_000)
DIGEST = Digest.of(CONTENT)
UPLOADS = f"/v2/{NAME}/blobs/uploads/"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    folder = tmp_path_factory.mktemp("bad-input")
    config = {"proxy": {"upload_idle_timeout": "300ms"}}
    with RunningCluster.start(folder, agents=0, config=config) as running:
        yield running


@pytest.fixture(autouse=True)
async def pushes_go_on(cluster: RunningCluster) -> AsyncIterator[None]:
    """After each test: a push works, nothing is left over, and no defect was logged."""
    logged = cluster.log_path("proxy-0").stat().st_size
    yield
    http = HttpClient(user_agent="test")
    content = random.Random(8).randbytes(1000)
    await RegistryClient(http, cluster.proxy).push_blob(NAME, Digest.of(content), content)
    await http.close()
    log = cluster.log_path("proxy-0").read_bytes()[logged:].decode()
    assert "Traceback" not in log
    assert "unexpected" not in log


@asynccontextmanager
async def connection(
    cluster: RunningCluster,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = urlsplit(cluster.proxy)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


async def answer_to(cluster: RunningCluster, sent: bytes) -> bytes:
    """All that comes back until the proxy closes the connection."""
    async with connection(cluster) as (reader, writer):
        writer.write(sent)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    """One answer; the proxy need not close the connection after it."""
    try:
        start = await reader.readuntil(b"\r\n\r\n")
    except (ConnectionResetError, asyncio.IncompleteReadError):
        return b""
    length = start.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    return start + await reader.readexactly(int(length))


def head(method: str, target: str, *lines: str) -> bytes:
    start = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close"]
    return "\r\n".join([*start, *lines, "", ""]).encode()


async def open_upload(cluster: RunningCluster) -> str:
    answer = await answer_to(cluster, head("POST", UPLOADS))
    assert answer.startswith(b"HTTP/1.1 202 ")
    (location,) = [
        line.partition(b": ")[2] for line in answer.split(b"\r\n") if line.startswith(b"Location")
    ]
    return location.decode()


def error_of(answer: bytes) -> tuple[int, str]:
    start, _, body = answer.partition(b"\r\n\r\n")
    (error,) = json.loads(body)["errors"]
    return int(start.split()[1]), error["code"]


def uploads_of(cluster: RunningCluster) -> list[Path]:
    return list((cluster.data_dir("proxy-0") / "uploads").iterdir())


async def test_a_tls_hello_on_the_plain_port(cluster: RunningCluster) -> None:
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = context.wrap_bio(incoming, outgoing, server_hostname="registry.example.test")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    answer = await answer_to(cluster, outgoing.read())
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        head("PATCH", f"{UPLOADS}x", "Content-Length: 1", "Content-Length: 2"),
        head("PATCH", f"{UPLOADS}x", "Content-Length: -1"),
        head("PATCH", f"{UPLOADS}x", "Content-Length: 5", "Transfer-Encoding: chunked"),
        head("PATCH", f"{UPLOADS}x", "Transfer-Encoding: gzip"),
    ],
)
async def test_what_is_no_proper_request(cluster: RunningCluster, sent: bytes) -> None:
    answer = await answer_to(cluster, sent)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))


@pytest.mark.parametrize(
    "method, target, status, code",
    [
        ("GET", "/v2/../../etc/passwd/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/UPPER/manifests/v1", 400, "NAME_INVALID"),
        ("POST", "/v2/a//b/blobs/uploads/", 400, "NAME_INVALID"),
        ("GET", f"/v2/a/blobs/sha256:{'A' * 64}", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/blobs/sha256:../../x", 404, "NOT_FOUND"),
        ("GET", f"/v2/a/blobs/{Digest.of(b'?')}", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/a/manifests/none", 404, "MANIFEST_UNKNOWN"),
        ("PUT", f"/v2/a/manifests/{'t' * 129}", 400, "TAG_INVALID"),
        ("GET", "/v2/a/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/_catalog?n=-1", 400, "BAD_REQUEST"),
        ("POST", f"{UPLOADS}?mount=sha256:1&from=a", 400, "DIGEST_INVALID"),
        ("PATCH", f"{UPLOADS}no-such-upload", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("DELETE", f"/v2/a/blobs/{DIGEST}", 404, "BLOB_UNKNOWN"),
        ("PUT", "/v2/", 405, "UNSUPPORTED"),
    ],
)
async def test_what_is_malformed_or_missing(
    cluster: RunningCluster, method: str, target: str, status: int, code: str
) -> None:
    answer = await answer_to(cluster, head(method, target))
    assert error_of(answer) == (status, code)
    assert b"\r\nDocker-Distribution-Api-Version: registry/2.0\r\n" in answer


async def test_a_client_that_vanishes_in_the_middle_may_come_back(cluster: RunningCluster) -> None:
    location = await open_upload(cluster)
    async with connection(cluster) as (_, writer):
        writer.write(head("PATCH", location, f"Content-Length: {len(CONTENT)}"))
        writer.write(CONTENT[:1_200_000])
        await writer.drain()
        writer.transport.abort()
    received = await settled(cluster, location)
    assert received <= 1_200_000
    rest = CONTENT[received:]
    put = head(
        "PUT",
        f"{location}?digest={DIGEST}",
        f"Content-Length: {len(rest)}",
        f"Content-Range: {received}-{len(CONTENT) - 1}",
    )
    assert (await answer_to(cluster, put + rest)).startswith(b"HTTP/1.1 201 ")
    assert uploads_of(cluster) == []


async def settled(cluster: RunningCluster, location: str) -> int:
    """The size of an upload once no request is writing to it any more."""
    async with asyncio.timeout(20):
        while True:
            sent = head("PATCH", location, "Content-Length: 0")
            answer = await answer_to(cluster, sent)
            if answer.startswith(b"HTTP/1.1 202 "):
                ending = answer.partition(b"\r\nRange: 0-")[2].partition(b"\r\n")[0]
                return 0 if ending == b"0" else int(ending) + 1
            assert error_of(answer) == (409, "BLOB_UPLOAD_INVALID")
            await asyncio.sleep(0.02)


async def test_a_client_that_stalls_is_let_go(cluster: RunningCluster) -> None:
    location = await open_upload(cluster)
    async with connection(cluster) as (reader, writer):
        writer.write(head("PATCH", location, "Content-Length: 100000"))
        writer.write(CONTENT[:70_000])
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ")
    assert await settled(cluster, location) == 70_000
    assert (await answer_to(cluster, head("DELETE", location))).startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nhelloworld\r\n0\r\n\r\n"])
async def test_broken_chunked_encoding(cluster: RunningCluster, broken: bytes) -> None:
    location = await open_upload(cluster)
    async with connection(cluster) as (reader, writer):
        writer.write(head("PATCH", location, "Transfer-Encoding: chunked") + b"5\r\nfirst\r\n")
        await until_busy(cluster, location)
        writer.write(broken)
        answer = await one_answer(reader)
    # At once, or when the idle timeout finds that nothing comes any more.
    assert answer == b"" or error_of(answer)[1] == "BLOB_UPLOAD_INVALID"
    assert await settled(cluster, location) in {0, 5, 10}  # the chunks that were whole
    await answer_to(cluster, head("DELETE", location))
    assert uploads_of(cluster) == []


async def until_busy(cluster: RunningCluster, location: str) -> None:
    """Return once a request is writing to an upload."""
    async with asyncio.timeout(20):
        sent = head("PATCH", location, "Content-Length: 0")
        while not (await answer_to(cluster, sent)).startswith(b"HTTP/1.1 409 "):
            pass


async def test_a_manifest_that_is_none(cluster: RunningCluster) -> None:
    for body in (
        b"",
        b"{}",
        b"[" * 50_000,
        b'{"schemaVersion": 1}',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
    ):
        sent = head(
            "PUT",
            f"/v2/{NAME}/manifests/v1",
            f"Content-Type: {OCI_MANIFEST}",
            f"Content-Length: {len(body)}",
        )
        assert error_of(await answer_to(cluster, sent + body)) == (400, "MANIFEST_INVALID")


async def test_a_manifest_that_is_too_large_is_not_even_read(cluster: RunningCluster) -> None:
    sent = head("PUT", f"/v2/{NAME}/manifests/v1", f"Content-Length: {10**12}")
    async with connection(cluster) as (reader, writer):
        writer.write(sent)
        answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
