# SPDX-License-Identifier: Apache-2.0
"""Small HTTP servers in the place of the ring's origins, which fail as a test tells them to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml
from aiohttp import web

from shoal.cluster.layout import BLOCK
from shoal.cluster.ports import reserve
from shoal.model.digest import Digest
from shoal.origin.messages import ReplicateRequest, StatAnswer, StatRequest
from shoal.web.serving import listening

Fault = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]
"""Answers in the place of the origin; the bytes are those of the blob that is asked for."""


def status(code: int, **headers: str) -> Fault:
    """Answer with a status."""

    async def answer(_: web.Request, __: bytes) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, text="as the test says", headers=named)

    answer.__name__ = f"status_{code}"
    return answer


async def reset(request: web.Request, _: bytes) -> web.StreamResponse:
    """Drop the connection instead of an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(request: web.Request, content: bytes) -> web.StreamResponse:
    """Announce the whole body, send half of it, and drop the connection."""
    response = web.StreamResponse(headers={"Content-Length": str(len(content))})
    await response.prepare(request)
    await response.write(content[: len(content) // 2])
    assert request.transport is not None
    # What was written is on its way: end the connection behind it.
    request.transport.close()
    await asyncio.Event().wait()
    return response


async def other_bytes(_: web.Request, content: bytes) -> web.StreamResponse:
    """Send as many bytes as asked for, and not the right ones."""
    return web.Response(body=b"x" * len(content))


class FaultyOrigin:
    """Keeps blobs in memory; each fault that is planned answers one request."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.blobs: dict[str, bytes] = {}
        self.read_faults: list[Fault] = []
        self.stat_faults: list[Fault] = []
        self.always: Fault | None = None
        """Answers every read and stat."""
        self.reads: list[tuple[float, str]] = []
        """When which digest was asked for (time of the loop)."""
        self.stats: list[tuple[float, list[str]]] = []
        self.asked = asyncio.Condition()
        self._running: AsyncExitStack | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/internal/blobs/{digest}", self._read)
        app.router.add_post("/internal/blobs/stat", self._stat)
        app.router.add_post("/internal/blobs/{digest}/replicate", self._replicate)
        running = AsyncExitStack()
        await running.enter_async_context(listening([(app, self.host)], grace=0.1))
        self._running = running

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.aclose()
            self._running = None

    async def until(self, condition: Callable[[], bool], within: float = 20.0) -> None:
        """Wait for requests that make it true."""
        async with asyncio.timeout(within), self.asked:
            await self.asked.wait_for(condition)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def _read(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        self.reads.append((asyncio.get_running_loop().time(), digest))
        await self._tell()
        content = self.blobs.get(digest)
        if fault := self._fault(self.read_faults):
            return await fault(request, content or b"")
        return web.Response(status=404) if content is None else web.Response(body=content)

    async def _stat(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=StatRequest).digests
        self.stats.append((asyncio.get_running_loop().time(), asked))
        await self._tell()
        if fault := self._fault(self.stat_faults):
            return await fault(request, b"")
        present = {digest: len(self.blobs[digest]) for digest in asked if digest in self.blobs}
        return web.Response(body=msgspec.json.encode(StatAnswer(present)))

    async def _replicate(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=ReplicateRequest)
        return web.Response(body=msgspec.json.encode({"copied": wanted.to, "failed": {}}))

    def _fault(self, planned: list[Fault]) -> Fault | None:
        return planned.pop(0) if planned else self.always

    async def _tell(self) -> None:
        async with self.asked:
            self.asked.notify_all()


class FaultyRing:
    """A build-index, as a real process, over three origins that fail when told to."""

    def __init__(self, origins: Sequence[FaultyOrigin], index: str, log: Path) -> None:
        self.origins = origins
        self.index = index
        """Base URL of the build-index."""
        self.index_host = index.removeprefix("http://")
        self._log = log

    def put(self, content: bytes, *on: int) -> Digest:
        """Put a blob on these origins, or on all."""
        digest = Digest.of(content)
        for number, origin in enumerate(self.origins):
            if not on or number in on:
                origin.blobs[str(digest)] = content
        return digest

    def remove(self, digest: Digest) -> None:
        """Take a blob away from all."""
        for origin in self.origins:
            origin.blobs.pop(str(digest), None)

    def fail(self, *, read: Sequence[Fault] = (), stat: Sequence[Fault] = ()) -> None:
        """Plan faults for the next requests of each origin."""
        for origin in self.origins:
            origin.read_faults += read
            origin.stat_faults += stat

    def reads(self, digest: Digest) -> list[int]:
        """How often each origin was asked for these bytes."""
        return [[d for _, d in o.reads].count(str(digest)) for o in self.origins]

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """What the build-index logged under this event."""
        lines = map(msgspec.json.decode, self._log.read_bytes().splitlines())
        return [line for line in lines if line["event"] == event]


@asynccontextmanager
async def faulty_ring(folder: Path, **config: Any) -> AsyncIterator[FaultyRing]:
    """Start the origins and the build-index; `config` goes into the latter's."""
    with reserve(BLOCK) as ports:
        hosts = [f"127.0.0.1:{ports.first + 1 + n}" for n in range(3)]
        listen = f"127.0.0.1:{ports.first + 4}"
        async with AsyncExitStack() as running:
            origins = [FaultyOrigin(host) for host in hosts]
            for origin in origins:
                await origin.start()
                running.push_async_callback(origin.stop)
            document = {
                "listen": listen,
                "data_dir": str(folder / "build-index"),
                "origins": {"hosts": hosts},
                "log": {"level": "debug", "format": "json"},
                **config,
            }
            log = folder / "build-index.log"
            process = await asyncio.to_thread(_start, folder, document, log)
            try:
                await asyncio.to_thread(_wait_healthy, f"http://{listen}/health", process, log)
                yield FaultyRing(origins, f"http://{listen}", log)
            finally:
                process.kill()
                await asyncio.to_thread(process.wait)


def _start(folder: Path, config: Mapping[str, Any], log: Path) -> subprocess.Popen[bytes]:
    path = folder / "build-index.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    command = [sys.executable, "-m", "shoal", "build-index", "--config", str(path)]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _wait_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError(log.read_text())
    raise AssertionError(log.read_text())
