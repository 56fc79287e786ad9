# SPDX-License-Identifier: Apache-2.0
"""The bytes in flight through an origin are bounded, however many send and fetch at once.

Blobs are small enough for a quick run; ``SHOAL_TEST_BLOB=64MiB`` takes larger ones.
"""

from __future__ import annotations

import asyncio
import os
import re
from hashlib import sha256
from pathlib import Path

import pytest

from shoal.config.units import parse_bytes
from tests.integration.origin_ring import Origin, running_ring

AT_ONCE = 200
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

    def url(self, number: int) -> str:
        hasher = self._hasher.copy()
        hasher.update(number.to_bytes(8, "big"))
        return f"/internal/blobs/sha256:{hasher.hexdigest()}"


async def upload(origin: Origin, content: Content, number: int) -> None:
    host, port = origin.host.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"PUT {content.url(number)} HTTP/1.1\r\nHost: {origin.host}\r\nContent-Length: {SIZE}\r\n"
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
    head = f"GET {content.url(number)} HTTP/1.1\r\nHost: {origin.host}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode())
    assert b" 200 " in await reader.readline()
    await reader.readuntil(b"\r\n\r\n")
    received = 0
    while chunk := await reader.read(CHUNK):
        received += len(chunk)
    writer.close()
    assert received == SIZE


def peak_memory(pid: int) -> int:
    """The most bytes that the process ever had in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.timeout(600)
async def test_many_uploads_and_downloads_at_once_stay_small(tmp_path: Path) -> None:
    content = Content()
    with running_ring(tmp_path, origins=1, replicas=1, write_quorum=1) as ring:
        [origin] = ring.origins
        assert origin.process is not None
        first, second = range(AT_ONCE), range(AT_ONCE, 2 * AT_ONCE)
        await asyncio.gather(*(upload(origin, content, number) for number in first))
        uploads = [upload(origin, content, number) for number in second]
        downloads = [download(origin, content, number) for number in first]
        await asyncio.gather(*uploads, *downloads)
        peak = peak_memory(origin.process.pid)
    print(f"peak memory of the origin: {peak / 10**6:.0f} MB")
    assert peak < LIMIT
