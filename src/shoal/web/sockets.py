# SPDX-License-Identifier: Apache-2.0
"""Send files and bytes straight into a non-blocking socket.

`os.sendfile` on a descriptor of our own works on every event loop, does not copy through user
space, and lets the sender see each byte that the other side takes: one that takes none for a while
is given up.
"""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial

SLICE = 4 * 1024 * 1024
"""Bytes after which other tasks get their turn, however fast the receiver is."""


class SendStalled(ConnectionError):
    """The receiver stayed connected and took nothing for too long."""


class FileTooShort(Exception):
    """The file ended before the bytes that were promised."""


async def send_file(sock: int, file: int, start: int, stop: int, *, stall_timeout: float) -> None:
    """Send the bytes [start, stop) of a file; both are descriptors.

    Raises `SendStalled`, `FileTooShort`, or the `ConnectionError` of a receiver that went away. The
    file's position is neither used nor moved.
    """
    position = turn = start
    while position < stop:
        try:
            sent = os.sendfile(sock, file, position, min(SLICE, stop - position))
        except BlockingIOError:
            await writable(sock, stall_timeout, position - start)
            turn = position
            continue
        if sent == 0:
            raise FileTooShort(f"the file ends at {position}, {stop} bytes were promised")
        position += sent
        if position - turn >= SLICE:
            await asyncio.sleep(0)
            turn = position


async def send_bytes(
    sock: socket.socket, data: bytes | bytearray | memoryview, *, stall_timeout: float
) -> None:
    """Send bytes; raises `SendStalled`, or the `ConnectionError` of a receiver that went away."""
    view = memoryview(data).cast("B")
    sent = turn = 0
    while sent < len(view):
        try:
            sent += sock.send(view[sent : sent + SLICE])
        except BlockingIOError:
            await writable(sock.fileno(), stall_timeout, sent)
            turn = sent
            continue
        if sent - turn >= SLICE:
            await asyncio.sleep(0)
            turn = sent


async def writable(sock: int, timeout: float, sent: int = 0) -> None:
    """Wait until a descriptor that no transport owns can be written to; raises `SendStalled`."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, partial(_settle, ready))
    try:
        async with asyncio.timeout(timeout):
            await ready
    except TimeoutError as error:
        raise SendStalled(
            f"the receiver took nothing for {timeout:g} s, after {sent} bytes"
        ) from error
    finally:
        loop.remove_writer(sock)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
