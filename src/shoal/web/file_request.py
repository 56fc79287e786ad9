# SPDX-License-Identifier: Apache-2.0
"""One request whose body is a file, over a connection of its own, sent by sendfile.

The HTTP library can only copy a body through user space: 1 GiB over loopback takes 0.53 CPU-seconds
of the sender when it reads in a thread, and 0.15 here, on asyncio and on uvloop. The request is as
plain as can be (Content-Length, ``Connection: close``), and the standard library parses the answer.
On TLS the bytes are read in a thread, and encrypted.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from typing import Protocol

from multidict import CIMultiDict
from yarl import URL

from shoal.store.threads import in_thread
from shoal.web.sockets import FileTooShort, SendStalled, send_bytes, send_file

STALL_TIMEOUT = 30.0
"""Seconds after which a receiver that takes no byte is given up."""

PACED = 1024 * 1024
"""Bytes of a part that a `Pace` is waited for."""

Pace = Callable[[int], Awaitable[None]]
"""Returns when so many bytes may go."""

_READ = 64 * 1024
_ENCRYPTED = 256 * 1024
"""Bytes that are encrypted at once, so that others have their turn."""

_MAX_HEAD = 64 * 1024
_MAX_ANSWER = 16 * 1024 * 1024
_UNSAFE = frozenset("\r\n\0")


class BadAnswer(Exception):
    """What came back is not an HTTP answer, is cut short or too long."""


async def request_with_file(
    method: str,
    url: URL,
    headers: Mapping[str, str],
    file: int,
    size: int,
    *,
    connect_timeout: float,
    stall_timeout: float,
    pace: Pace | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[int, Mapping[str, str], bytes]:
    """Send [0, size) of a descriptor; return status, headers and body of the answer.

    `tls`: how servers are checked where the URL is one of https; by default as the system does.
    The caller bounds the whole. Raises `BadAnswer`, or the `OSError` of the connection.
    """
    try:
        async with asyncio.timeout(connect_timeout):
            channel = await _open(url, tls)
    except TimeoutError as error:
        raise TimeoutError(f"no connection within {connect_timeout:g} s") from error
    try:
        answer = asyncio.create_task(_receive(channel))
        sending = asyncio.create_task(
            _send(
                channel,
                _head(method, url, headers, size),
                file,
                size,
                stall_timeout=stall_timeout,
                pace=pace,
            )
        )
        try:
            # An answer that comes while the body is being sent (409, 503, …) is final.
            await asyncio.wait((answer, sending), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and (failure := sending.exception()) is not None:
                await _last_word(answer, failure)
            return await answer
        finally:
            for task in (answer, sending):
                task.cancel()
            await asyncio.gather(answer, sending, return_exceptions=True)
    finally:
        channel.close()


class _Channel(Protocol):
    """A connection; raises `SendStalled` when the receiver takes nothing for `stall_timeout`."""

    async def send(self, data: bytes, *, stall_timeout: float) -> None: ...
    async def send_file(
        self, file: int, start: int, stop: int, *, stall_timeout: float
    ) -> None: ...
    async def receive(self) -> bytes: ...
    def close(self) -> None: ...


async def _open(url: URL, tls: ssl.SSLContext | None) -> _Channel:
    if url.scheme not in {"http", "https"} or url.host is None or url.port is None:
        raise ValueError(f"cannot upload to {url}: neither http:// nor https://")
    if url.scheme == "http":
        return _Plain(await _connect(url.host, url.port))
    context = ssl.create_default_context() if tls is None else tls
    reader, writer = await asyncio.open_connection(
        url.host, url.port, ssl=context, server_hostname=url.host
    )
    return _Encrypted(reader, writer)


class _Plain:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def send(self, data: bytes, *, stall_timeout: float) -> None:
        await send_bytes(self._sock, data, stall_timeout=stall_timeout)

    async def send_file(self, file: int, start: int, stop: int, *, stall_timeout: float) -> None:
        await send_file(self._sock.fileno(), file, start, stop, stall_timeout=stall_timeout)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._sock, _READ)

    def close(self) -> None:
        self._sock.close()


class _Encrypted:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes, *, stall_timeout: float) -> None:
        self._writer.write(data)
        try:
            async with asyncio.timeout(stall_timeout):
                await self._writer.drain()
        except TimeoutError as error:
            raise SendStalled(f"the receiver took nothing for {stall_timeout:g} s") from error

    async def send_file(self, file: int, start: int, stop: int, *, stall_timeout: float) -> None:
        while start < stop:
            data = await in_thread(os.pread, file, min(_ENCRYPTED, stop - start), start)
            if not data:
                raise FileTooShort(f"the file ends at {start}, {stop} bytes were promised")
            await self.send(data, stall_timeout=stall_timeout)
            start += len(data)

    async def receive(self) -> bytes:
        return await self._reader.read(_READ)

    def close(self) -> None:
        self._writer.transport.abort()


async def _last_word(
    answer: asyncio.Task[tuple[int, Mapping[str, str], bytes]], failure: BaseException
) -> None:
    """Sending failed: the receiver may have said why before it closed; else raise the failure."""
    if isinstance(failure, SendStalled) or not isinstance(failure, ConnectionError):
        raise failure
    await asyncio.wait((answer,), timeout=1.0)
    if not answer.done() or answer.exception() is not None:
        raise failure


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    error: OSError | None = None
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
        except OSError as failure:
            sock.close()
            error = failure
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise error or OSError(f"no address for {host}")


def _head(method: str, url: URL, headers: Mapping[str, str], size: int) -> bytes:
    fields = {
        "Host": url.authority,
        **headers,
        "Content-Length": str(size),
        "Connection": "close",
    }
    lines = [
        f"{method} {url.raw_path_qs} HTTP/1.1",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    if any(_UNSAFE & set(line) for line in lines):
        raise ValueError(f"a header of the upload to {url} holds a line break")
    return "\r\n".join([*lines, "", ""]).encode()


async def _send(
    channel: _Channel,
    head: bytes,
    file: int,
    size: int,
    *,
    stall_timeout: float,
    pace: Pace | None,
) -> None:
    await channel.send(head, stall_timeout=stall_timeout)
    step = size if pace is None else PACED
    try:
        for start in range(0, size, max(1, step)):
            stop = min(size, start + step)
            if pace is not None:
                await pace(stop - start)
            await channel.send_file(file, start, stop, stall_timeout=stall_timeout)
    except FileTooShort as error:
        raise OSError(f"cannot send the file: {error}") from error


async def _receive(channel: _Channel) -> tuple[int, Mapping[str, str], bytes]:
    received = bytearray()
    wanted: int | None = None
    while wanted is None or len(received) < wanted:
        chunk = await channel.receive()
        if not chunk:
            break
        received += chunk
        if wanted is None:
            wanted = _length(received)
        if len(received) > _MAX_ANSWER:
            raise BadAnswer(f"the answer has more than {_MAX_ANSWER} bytes")
    if not received:
        raise BadAnswer("the connection was closed without an answer")
    return _parse(bytes(received))


def _length(received: bytearray) -> int | None:
    """Bytes of the whole answer as far as its head says; None: not known yet, read to the end."""
    head, blank, _ = received.partition(b"\r\n\r\n")
    if not blank:
        if len(head) > _MAX_HEAD:
            raise BadAnswer(f"the head of the answer has more than {_MAX_HEAD} bytes")
        return None
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return len(head) + len(blank) + int(value)
    return None


class _Received:
    """What `HTTPResponse` needs of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> BytesIO:
        return BytesIO(self._data)


def _parse(data: bytes) -> tuple[int, Mapping[str, str], bytes]:
    response = HTTPResponse(_Received(data))  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
    except (HTTPException, ValueError) as error:
        raise BadAnswer(f"not a whole HTTP answer: {error!r}") from error
    return response.status, CIMultiDict(response.getheaders()), body
