# SPDX-License-Identifier: Apache-2.0
"""One request whose body is a file, over a connection of its own, sent by sendfile.

The HTTP library can only copy a body through user space: 1 GiB over loopback takes 0.53 CPU-seconds
of the sender when it reads in a thread, and 0.15 here, on asyncio and on uvloop. The request is as
plain as can be (Content-Length, ``Connection: close``), and the standard library parses the answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from http.client import HTTPException, HTTPResponse
from io import BytesIO

from multidict import CIMultiDict
from yarl import URL

from shoal.web.sockets import FileTooShort, SendStalled, send_bytes, send_file

STALL_TIMEOUT = 30.0
"""Seconds after which a receiver that takes no byte is given up."""

PACED = 1024 * 1024
"""Bytes of a part that a `Pace` is waited for."""

Pace = Callable[[int], Awaitable[None]]
"""Returns when so many bytes may go."""

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
) -> tuple[int, Mapping[str, str], bytes]:
    """Send [0, size) of a descriptor; return status, headers and body of the answer.

    The caller bounds the whole. Raises `BadAnswer`, or the `OSError` of the connection.
    """
    if url.scheme != "http" or url.host is None:
        raise ValueError(f"cannot upload to {url}: only http:// is supported")
    try:
        async with asyncio.timeout(connect_timeout):
            sock = await _connect(url.host, url.port or 80)
    except TimeoutError as error:
        raise TimeoutError(f"no connection within {connect_timeout:g} s") from error
    with sock:
        answer = asyncio.create_task(_receive(sock))
        sending = asyncio.create_task(
            _send(
                sock,
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
    sock: socket.socket,
    head: bytes,
    file: int,
    size: int,
    *,
    stall_timeout: float,
    pace: Pace | None,
) -> None:
    await send_bytes(sock, head, stall_timeout=stall_timeout)
    step = size if pace is None else PACED
    try:
        for start in range(0, size, max(1, step)):
            stop = min(size, start + step)
            if pace is not None:
                await pace(stop - start)
            await send_file(sock.fileno(), file, start, stop, stall_timeout=stall_timeout)
    except FileTooShort as error:
        raise OSError(f"cannot send the file: {error}") from error


async def _receive(sock: socket.socket) -> tuple[int, Mapping[str, str], bytes]:
    loop = asyncio.get_running_loop()
    received = bytearray()
    wanted: int | None = None
    while wanted is None or len(received) < wanted:
        chunk = await loop.sock_recv(sock, 64 * 1024)
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
