# SPDX-License-Identifier: Apache-2.0
"""HTTP over loopback as it is on the wire, for tests of what the library would hide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ssl import SSLContext

import uvloop
from aiohttp import web

from shoal.config.model import Clients
from shoal.web.server import application
from shoal.web.serving import Listener, listening
from shoal.web.tls import Tls

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One connection, on which requests are written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, text: str | bytes) -> None:
        self.writer.write(text.encode() if isinstance(text, str) else text)
        await self.writer.drain()

    async def head_of_request(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): text.strip() for name, _, text in fields}

    async def reply(self, *, body: bool = True) -> Reply:
        status, headers = await self.head()
        size = int(headers.get("content-length", 0)) if body else 0
        return Reply(status, headers, await self.reader.readexactly(size))

    async def ask(self, method: str, path: str, *lines: str) -> Reply:
        await self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]))
        return await self.reply(body=method != "HEAD")

    async def rest(self) -> bytes:
        """All until the connection ends, however it ends."""
        received = bytearray()
        try:
            while chunk := await self.reader.read(65536):
                received += chunk
        except ConnectionError:
            pass
        return bytes(received)


@asynccontextmanager
async def wire(address: str, tls: SSLContext | None = None) -> AsyncIterator[Wire]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def served(
    *routes: tuple[str, str, Handler],
    missing: list[str] | None = None,
    grace: float = 1.0,
    request_timeout: float = 60.0,
    tls: Tls | None = None,
    clients: Clients = "required",
    max_body: int = 4 * 1024 * 1024,
) -> AsyncIterator[str]:
    """An application with these routes on a port of loopback; gives its address."""

    async def readiness() -> list[str]:
        return missing or []

    app = application(
        "test", readiness=readiness, request_timeout=request_timeout, max_body=max_body
    )
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
    listener = Listener(app, "127.0.0.1:0", tls=tls, clients=clients)
    async with listening([listener], grace=grace) as (address,):
        yield address


def loops() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    """What makes the event loops that services run on."""
    return [asyncio.new_event_loop, uvloop.new_event_loop]
