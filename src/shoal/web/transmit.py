# SPDX-License-Identifier: Apache-2.0
"""Move a body into a connection whose head aiohttp has written.

On plain TCP the bytes go around the transport, into a duplicate of its socket, by sendfile. On TLS
they must go through it: read in a thread, and written.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from aiohttp import web

from shoal.store.threads import in_thread
from shoal.web.sockets import FileTooShort, SendStalled, send_bytes, send_file

_WRITE_BYTES = 256 * 1024
_READ_BYTES = 1024 * 1024


class BodySender(Protocol):
    """Sends parts of a body in order; raises `ConnectionError` when the client left or stalls."""

    async def file(self, file: int, start: int, stop: int) -> None: ...
    async def data(self, data: bytes | bytearray | memoryview) -> None: ...


@asynccontextmanager
async def body_sender(
    request: web.BaseRequest, response: web.StreamResponse, stall_timeout: float
) -> AsyncIterator[BodySender]:
    """Give the sender for a response that is prepared and has a Content-Length."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client closed the connection")
    if not may_bypass(transport):
        yield _Stream(response, stall_timeout)
        return
    # A duplicate: the transport's own descriptor is the loop's, which may close it any time.
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as own:
        own.setblocking(False)
        await _flushed(transport, stall_timeout)
        yield _Direct(own, transport, stall_timeout)


def may_bypass(transport: asyncio.BaseTransport) -> bool:
    """Whether bytes written to the transport's socket are what the client reads: not so on TLS."""
    return (
        transport.get_extra_info("socket") is not None
        and transport.get_extra_info("sslcontext") is None
    )


async def _flushed(transport: asyncio.WriteTransport, timeout: float) -> None:
    """Wait until the transport has handed the head to the kernel; bytes sent past it come after."""
    if not transport.get_write_buffer_size():
        return
    try:
        async with asyncio.timeout(timeout):
            pause = 0.0
            while transport.get_write_buffer_size() and not transport.is_closing():
                await asyncio.sleep(pause)
                pause = 0.005
    except TimeoutError as error:
        raise SendStalled(f"the client took nothing for {timeout:g} s") from error


class _Direct:
    def __init__(
        self, sock: socket.socket, transport: asyncio.WriteTransport, stall_timeout: float
    ) -> None:
        self._sock = sock
        self._transport = transport
        self._stall_timeout = stall_timeout

    async def file(self, file: int, start: int, stop: int) -> None:
        self._check()
        await send_file(self._sock.fileno(), file, start, stop, stall_timeout=self._stall_timeout)

    async def data(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        await send_bytes(self._sock, data, stall_timeout=self._stall_timeout)

    def _check(self) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client closed the connection")


class _Stream:
    def __init__(self, response: web.StreamResponse, stall_timeout: float) -> None:
        self._response = response
        self._stall_timeout = stall_timeout

    async def file(self, file: int, start: int, stop: int) -> None:
        while start < stop:
            data = await in_thread(os.pread, file, min(_READ_BYTES, stop - start), start)
            if not data:
                raise FileTooShort(f"the file ends at {start}, {stop} bytes were promised")
            await self.data(data)
            start += len(data)

    async def data(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _WRITE_BYTES):
            try:
                async with asyncio.timeout(self._stall_timeout):
                    await self._response.write(view[start : start + _WRITE_BYTES])
            except TimeoutError as error:
                raise SendStalled(
                    f"the client took nothing for {self._stall_timeout:g} s"
                ) from error
