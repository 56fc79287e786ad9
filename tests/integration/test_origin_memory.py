# SPDX-License-Identifier: Apache-2.0
"""The bytes in flight through an origin are bounded, however many send and fetch at once.

Blobs are small enough for a quick run; ``SHOAL_TEST_BLOB=64MiB`` takes larger ones.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shoal.config.units import parse_bytes
from shoal.web.serving import listening
from tests.integration.origin_ring import Origin, Ring, running_ring, until

AT_ONCE = 200
FETCHED = 16
"""Blobs that come from the bucket, as many as an origin fetches at once."""

SIZE = parse_bytes(os.environ.get("SHOAL_TEST_BLOB", "4MiB"))
LIMIT = 400 * 10**6
CHUNK = 256 * 1024


class Content:
    """Blobs that differ in their last bytes, without memory for each."""

    def __init__(self) -> None:
        self._common = os.urandom(SIZE - 8)
        self._hasher = sha256(self._common)

    def parts(self, number: int) -> list[memoryview]:
        common = memoryview(self._common)
        parts = [common[start : start + CHUNK] for start in range(0, len(common), CHUNK)]
        return [*parts, memoryview(number.to_bytes(8, "big"))]

    def hex(self, number: int) -> str:
        hasher = self._hasher.copy()
        hasher.update(number.to_bytes(8, "big"))
        return hasher.hexdigest()

    def path(self, number: int) -> str:
        """Every other blob goes over the public API, the others as services of the cluster do."""
        if number % 2:
            return f"/internal/blobs/sha256:{self.hex(number)}?namespace=team/app"
        return f"/namespace/team%2Fapp/blobs/sha256:{self.hex(number)}"


class HeldBucket:
    """Speaks S3's protocol, keeps only sizes, and answers no write before `released` is set.

    So all that an origin may have on its way to object storage is there at the same time.
    """

    def __init__(self, content: Content, numbers: range) -> None:
        """The blobs of these `numbers` are there."""
        self._content = content
        self._numbers = {content.hex(number): number for number in numbers}
        self._parts: Counter[str] = Counter()
        self.sizes = dict.fromkeys(self._numbers, SIZE)
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        key = request.path.rsplit("/", 2)[-2]
        if request.method == "POST":
            return self._multipart(request, key)
        if request.method == "PUT":
            return await self._written(request, key)
        if key not in self.sizes:
            return web.Response(status=404)
        modified = {"ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
        response = web.StreamResponse(headers=modified)
        response.content_length = self.sizes[key]
        await response.prepare(request)
        if request.method == "GET":
            for part in self._content.parts(self._numbers[key]):
                await response.write(part)
        return response

    async def _written(self, request: web.Request, key: str) -> web.Response:
        first = await request.content.readany()
        await self.released.wait()
        size = len(first)
        async for chunk in request.content.iter_any():
            size += len(chunk)
        if "partNumber" in request.query:
            self._parts[key] += size
        else:
            self.sizes[key] = size
        return web.Response(headers={"ETag": '"x"'})

    def _multipart(self, request: web.Request, key: str) -> web.Response:
        if "uploads" in request.query:
            answer = "InitiateMultipartUploadResult"
        else:
            answer = "CompleteMultipartUploadResult"
            self.sizes[key] = self._parts.pop(key)
        place = '<Bucket>b</Bucket><Key>k</Key><UploadId>u</UploadId><ETag>"x"</ETag>'
        xml = f"<{answer}>{place}</{answer}>"
        return web.Response(content_type="application/xml", text=xml)


async def upload(origin: Origin, content: Content, number: int) -> None:
    host, port = origin.host.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"PUT {content.path(number)} HTTP/1.1\r\nHost: {origin.host}\r\nContent-Length: {SIZE}\r\n"
    )
    writer.write(f"{head}Connection: close\r\n\r\n".encode())
    for part in content.parts(number):
        writer.write(part)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 201 "), answer


async def download(origin: Origin, content: Content, number: int) -> None:
    host, port = origin.host.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"GET {content.path(number)} HTTP/1.1\r\nHost: {origin.host}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode())
    assert b" 200 " in await reader.readline()
    await reader.readuntil(b"\r\n\r\n")
    received = 0
    while chunk := await reader.read(CHUNK):
        received += len(chunk)
    writer.close()
    assert received == SIZE


def peak_memory(origin: Origin) -> int:
    """The most bytes that the process ever had in memory."""
    assert origin.process is not None
    status = Path(f"/proc/{origin.process.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def checked(ring: Ring, what: str) -> None:
    peak = peak_memory(ring.origins[0])
    print(f"peak memory of the origin, {what}: {peak / 10**6:.0f} MB")
    assert peak < LIMIT


@pytest.mark.timeout(900)
async def test_many_uploads_and_downloads_at_once_stay_small(tmp_path: Path) -> None:
    content = Content()
    with running_ring(tmp_path, origins=1, replicas=1, write_quorum=1) as ring:
        [origin] = ring.origins
        first, second = range(AT_ONCE), range(AT_ONCE, 2 * AT_ONCE)
        await asyncio.gather(*(upload(origin, content, number) for number in first))
        uploads = [upload(origin, content, number) for number in second]
        downloads = [download(origin, content, number) for number in first]
        await asyncio.gather(*uploads, *downloads)
        checked(ring, "without a backend")


@pytest.mark.timeout(900)
async def test_so_they_do_before_object_storage_that_is_slow(tmp_path: Path) -> None:
    content = Content()
    first, second = range(AT_ONCE), range(AT_ONCE, 2 * AT_ONCE)
    # The public API asks the backend for what is not on an origin; the other one does not.
    stored = range(2 * AT_ONCE, 2 * AT_ONCE + 2 * FETCHED, 2)
    bucket = HeldBucket(content, stored)
    app = web.Application(client_max_size=2 * SIZE)
    app.router.add_route("*", "/{path:.*}", bucket.answer)
    async with listening([(app, "127.0.0.1:0")], grace=1) as [address]:
        backend: dict[str, Any] = {
            "match": ".*",
            "kind": "s3",
            "bucket": "b",
            "endpoint": f"http://{address}",
            "credentials": "anonymous",
            "timeout": "15m",
        }
        starting = running_ring(
            tmp_path,
            origins=1,
            replicas=1,
            write_quorum=1,
            backends=[backend],
            writeback={"concurrency": 64},
        )
        ring = await asyncio.to_thread(starting.__enter__)
        try:
            [origin] = ring.origins
            await asyncio.gather(*(upload(origin, content, number) for number in first))
            uploads = [upload(origin, content, number) for number in second]
            downloads = [download(origin, content, number) for number in (*first, *stored)]
            await asyncio.gather(*uploads, *downloads)
            checked(ring, "nothing written to its backend")
            bucket.released.set()
            await until(lambda: len(bucket.sizes) == FETCHED + 2 * AT_ONCE, within=600)
            checked(ring, "all written to its backend")
            assert set(bucket.sizes.values()) == {SIZE}
        finally:
            bucket.released.set()
            await asyncio.to_thread(starting.__exit__, None, None, None)
