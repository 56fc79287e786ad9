# SPDX-License-Identifier: Apache-2.0
"""Blob bodies on the wire, on both event loops that services use."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown
from shoal.web import transmit
from shoal.web.bodies import FileBlob, FileSegment, Segment, send_blob
from tests.unit.web_loopback import Handler, loops, served, wire

CONTENT = os.urandom(3_000_000)
DIGEST = Digest.of(CONTENT)
ETAG = f'"{DIGEST}"'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    return path


class Parts:
    """A blob that comes as bytes and files in turn, and may fail."""

    def __init__(
        self,
        file: int,
        *,
        size: int = len(CONTENT),
        step: int = 700_001,
        fail_at: int | None = None,
        error: Exception | None = None,
        extra: bytes = b"",
    ) -> None:
        self.size = size
        self.closed = 0
        self._file = file
        self._step = step
        self._fail_at = fail_at
        self._error = error
        self._extra = extra

    async def segments(self, start: int, stop: int) -> AsyncIterator[Segment]:
        as_file = False
        for at in range(start, stop, self._step):
            if self._fail_at is not None and at >= self._fail_at:
                if self._error is not None:
                    raise self._error
                return
            end = min(at + self._step, stop)
            yield FileSegment(self._file, at, end) if as_file else memoryview(CONTENT)[at:end]
            as_file = not as_file
        if self._extra:
            yield self._extra

    async def close(self) -> None:
        self.closed += 1


def blob_of(path: Path, stall_timeout: float = 60.0) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        blob = await FileBlob.open(path)
        return await send_blob(request, blob, digest=DIGEST, stall_timeout=stall_timeout)

    return handler


def on_each_loop(scenario: Callable[[], Coroutine[object, object, None]]) -> None:
    for factory in loops():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(scenario(), 30))


def test_a_blob_is_sent_whole_in_part_or_not_at_all(path: Path) -> None:
    async def scenario() -> None:
        async with served(("*", "/blob", blob_of(path))) as address, wire(address) as http:
            # One connection all along: every body must end exactly where it should.
            whole = await http.ask("GET", "/blob")
            assert (whole.status, whole.body) == (200, CONTENT)
            assert whole.headers["content-length"] == str(len(CONTENT))
            assert whole.headers["etag"] == ETAG
            assert whole.headers["docker-content-digest"] == str(DIGEST)
            assert whole.headers["accept-ranges"] == "bytes"
            assert whole.headers["content-type"] == "application/octet-stream"
            assert "transfer-encoding" not in whole.headers

            head = await http.ask("HEAD", "/blob", "Range: bytes=5-9")
            assert (head.status, head.headers["content-length"]) == (200, str(len(CONTENT)))

            part = await http.ask("GET", "/blob", "Range: bytes=1000000-")
            assert (part.status, part.body) == (206, CONTENT[1_000_000:])
            assert part.headers["content-range"] == f"bytes 1000000-2999999/{len(CONTENT)}"

            outside = await http.ask("GET", "/blob", "Range: bytes=3000000-")
            assert outside.status == 416
            assert outside.headers["content-range"] == f"bytes */{len(CONTENT)}"
            assert b"RANGE_INVALID" in outside.body

            known = await http.ask("GET", "/blob", 'If-None-Match: "x"', f"If-None-Match: W/{ETAG}")
            assert (known.status, known.headers["etag"]) == (304, ETAG)
            assert "content-length" not in known.headers
            assert (await http.ask("GET", "/blob", "If-None-Match: *")).status == 304

            same = await http.ask("GET", "/blob", "Range: bytes=-7", f"If-Range: {ETAG}")
            assert (same.status, same.body) == (206, CONTENT[-7:])
            other = await http.ask("GET", "/blob", "Range: bytes=-7", 'If-Range: "other"')
            assert (other.status, len(other.body)) == (200, len(CONTENT))

            assert (await http.ask("GET", "/health")).body == b"OK"

    on_each_loop(scenario)


def test_several_ranges_are_the_parts_of_one_body(path: Path) -> None:
    async def scenario() -> None:
        async with served(("GET", "/blob", blob_of(path))) as address, wire(address) as http:
            for _ in range(2):
                answer = await http.ask("GET", "/blob", "Range: bytes=-5,0-1999999,7-7")
                assert answer.status == 206
                boundary = answer.headers["content-type"].partition("boundary=")[2]
                parts = answer.body.split(f"--{boundary}".encode())
                assert parts[0] == b""
                assert parts[-1] == b"--\r\n"
                assert [part.partition(b"\r\n\r\n")[2][:-2] for part in parts[1:-1]] == [
                    CONTENT[-5:],
                    CONTENT[:2_000_000],
                    CONTENT[7:8],
                ]

    on_each_loop(scenario)


def test_a_blob_may_come_as_bytes_and_files_in_turn(path: Path) -> None:
    async def scenario() -> None:
        with path.open("rb") as file:
            blobs: list[Parts] = []

            async def handler(request: web.Request) -> web.StreamResponse:
                blobs.append(Parts(file.fileno()))
                return await send_blob(request, blobs[-1], digest=DIGEST)

            async with served(("GET", "/blob", handler)) as address, wire(address) as http:
                assert (await http.ask("GET", "/blob")).body == CONTENT
                part = await http.ask("GET", "/blob", "Range: bytes=99-1999999")
                assert part.body == CONTENT[99:2_000_000]
                assert (await http.ask("GET", "/blob", f"If-None-Match: {ETAG}")).status == 304
            assert [blob.closed for blob in blobs] == [1, 1, 1]

    on_each_loop(scenario)


def test_an_empty_blob_has_an_empty_body(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "empty").write_bytes(b"")
        async with (
            served(("GET", "/blob", blob_of(tmp_path / "empty"))) as address,
            wire(address) as http,
        ):
            reply = await http.ask("GET", "/blob")
            assert (reply.status, reply.headers["content-length"]) == (200, "0")

    on_each_loop(scenario)


async def test_a_source_that_fails_at_once_gets_its_own_status() -> None:
    blob = Parts(0, fail_at=0, error=BlobUnknown("no owner has it"))

    async def handler(request: web.Request) -> web.StreamResponse:
        return await send_blob(request, blob, digest=DIGEST)

    async with served(("GET", "/blob", handler)) as address, wire(address) as http:
        reply = await http.ask("GET", "/blob")
        assert reply.status == 404
        assert b"BLOB_UNKNOWN" in reply.body
    assert blob.closed == 1


async def test_through_tls_the_same_bytes_are_read_and_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transmit, "may_bypass", lambda _transport: False)

    async def handler(request: web.Request) -> web.StreamResponse:
        with path.open("rb") as file:
            return await send_blob(request, Parts(file.fileno()), digest=DIGEST)

    async with served(("GET", "/blob", handler)) as address, wire(address) as http:
        assert (await http.ask("GET", "/blob")).body == CONTENT
        assert (await http.ask("GET", "/blob", "Range: bytes=-9")).body == CONTENT[-9:]


FAILURES: Sequence[tuple[str, dict[str, object]]] = [
    (
        "ValueError: the swarm lost it",
        {"fail_at": 1_400_000, "error": ValueError("the swarm lost it")},
    ),
    ("the source gave 1400002 of the 3000000 bytes", {"fail_at": 1_400_000}),
    ("the source gave more than the 3000000 bytes", {"extra": b"more"}),
    ("the file ends at 3000000, 4000000 bytes were", {"size": 4_000_000, "step": 2_000_000}),
]


@pytest.mark.parametrize("why,options", FAILURES)
def test_a_source_that_fails_later_cuts_the_connection_and_is_logged_once(
    path: Path, why: str, options: dict[str, object]
) -> None:
    async def scenario() -> None:
        with path.open("rb") as file, capture_logs() as logs:

            async def handler(request: web.Request) -> web.StreamResponse:
                blob = Parts(file.fileno(), **options)  # type: ignore[arg-type]
                return await send_blob(request, blob, digest=DIGEST)

            async with served(("GET", "/blob", handler)) as address, wire(address) as http:
                await http.send("GET /blob HTTP/1.1\r\nHost: x\r\n\r\n")
                status, headers = await http.head()
                body = await http.rest()
        assert status == 200
        assert body == CONTENT[: len(body)]
        assert len(body) < int(headers["content-length"]) or why.startswith("the source gave more")
        (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
        assert entry["event"] == "body cut short"
        assert entry["digest"] == str(DIGEST)
        assert why in entry["why"]

    on_each_loop(scenario)


def narrow(address: str) -> socket.socket:
    """A connection that takes little at a time."""
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    sock.sendall(b"GET /blob HTTP/1.1\r\nHost: x\r\n\r\n")
    return sock


@pytest.mark.parametrize("kind", ["file", "bytes"])
def test_a_client_that_takes_nothing_is_dropped(tmp_path: Path, kind: str) -> None:
    size = 64 * 1024 * 1024
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)

    class Bytes:
        def __init__(self) -> None:
            self.size = size

        async def segments(self, _start: int, _stop: int) -> AsyncIterator[Segment]:
            yield bytes(self.size)

        async def close(self) -> None: ...

    async def scenario() -> None:
        done = asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            blob = Bytes() if kind == "bytes" else await FileBlob.open(tmp_path / "large")
            try:
                return await send_blob(request, blob, digest=DIGEST, stall_timeout=0.2)
            finally:
                done.set()

        with capture_logs() as logs:
            async with served(("GET", "/blob", handler)) as address:
                with narrow(address):
                    await asyncio.wait_for(done.wait(), 10)
        (entry,) = [entry for entry in logs if entry["event"] == "client left"]
        assert "took nothing for 0.2 s" in entry["why"]

    on_each_loop(scenario)


def test_a_client_that_leaves_is_noticed(path: Path) -> None:
    async def scenario() -> None:
        async with served(("GET", "/blob", blob_of(path))) as address:
            with narrow(address) as sock:
                await asyncio.to_thread(sock.recv, 1)
            async with wire(address) as http:
                assert (await http.ask("GET", "/blob")).body == CONTENT

    on_each_loop(scenario)


def test_a_slow_client_gets_all_while_others_are_served(path: Path) -> None:
    async def scenario() -> None:
        async with served(("GET", "/blob", blob_of(path, stall_timeout=5))) as address:
            with narrow(address) as slow:
                async with wire(address) as http:
                    assert (await http.ask("GET", "/blob")).body == CONTENT
                await asyncio.to_thread(_drain, slow, len(CONTENT))

    on_each_loop(scenario)


def test_a_client_that_wants_the_connection_closed_still_gets_all(path: Path) -> None:
    async def scenario() -> None:
        async with served(("GET", "/blob", blob_of(path))) as address, wire(address) as http:
            await http.send("GET /blob HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await http.head()
            assert await http.rest() == CONTENT

    on_each_loop(scenario)


def _drain(sock: socket.socket, size: int) -> None:
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += sock.recv(4096)
    body = received.partition(b"\r\n\r\n")[2]
    while len(body) < size:
        body += sock.recv(65536)
    assert body == CONTENT


def test_many_requests_may_be_sent_at_once_on_one_connection(path: Path) -> None:
    async def scenario() -> None:
        async with served(("GET", "/blob", blob_of(path))) as address, wire(address) as http:
            asking = "".join(
                f"GET /blob HTTP/1.1\r\nHost: x\r\nRange: bytes={n}-{n + 999}\r\n\r\n"
                for n in range(0, 10_000, 1000)
            )
            await http.send(asking)
            for n in range(0, 10_000, 1000):
                assert (await http.reply()).body == CONTENT[n : n + 1000]

    on_each_loop(scenario)
