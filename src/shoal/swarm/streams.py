# SPDX-License-Identifier: Apache-2.0
"""A connected socket, plain or with TLS: bytes in, bytes and file ranges out, never waiting."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Protocol

_SLICE = 1024 * 1024
"""Bytes per sendfile call: few enough that other connections get their turn."""

_CHUNK = 128 * 1024
"""Bytes that are read from a file and encrypted at a time."""


class Stream(Protocol):
    """All calls return at once; they raise BlockingIOError when they would have to wait."""

    turn: int
    """Calls in a row, before other connections get their turn."""

    read_needs_write: bool
    """`receive` waits until the socket can be written to: TLS has to answer something first."""

    remote: str
    """The address of the other side; empty when it was gone before it could be seen."""

    def fileno(self) -> int: ...

    def receive(self, memory: memoryview) -> int:
        """Bytes received into the memory; 0 at the end."""

    def buffered(self) -> bool:
        """Whether there are bytes to receive of which the socket no longer tells."""

    def send(self, data: memoryview, *, more: bool = False) -> int:
        """Bytes sent. After BlockingIOError the same data must be sent first.

        `more`: other bytes follow at once, and may share a packet with the last of these.
        """

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Bytes sent of a file, at most `count`; 0 when it ends before. Retry as with `send`."""

    def close(self) -> None: ...


class PlainStream:
    """What goes over the wire is what is in memory or in the file."""

    turn = 8
    read_needs_write = False

    def __init__(self, sock: socket.socket) -> None:
        _prepare(sock)
        self._sock = sock
        self.remote = _remote(sock)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def receive(self, memory: memoryview) -> int:
        """Straight into the memory."""
        return self._sock.recv_into(memory)

    def buffered(self) -> bool:
        """Nothing is kept here."""
        return False

    def send(self, data: memoryview, *, more: bool = False) -> int:
        """As much as the socket takes."""
        return self._sock.send(data, socket.MSG_MORE if more else 0)

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """With sendfile: the bytes do not pass through this process."""
        return os.sendfile(self._sock.fileno(), fd, offset, min(count, _SLICE))

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class TlsStream:
    """An `SSLSocket` after its handshake. TLS hands out a record (16 KiB) per call."""

    turn = 32

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._memory: memoryview | None = None
        self._unsent = memoryview(b"")
        """Read from the file and not yet taken by TLS: a write must be tried again as it was."""
        self.read_needs_write = False
        self.remote = _remote(sock)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def certificate(self) -> dict[str, object]:
        """What the other side proved that it is; fields as in `SSLSocket.getpeercert`."""
        return dict(self._sock.getpeercert() or {})

    def receive(self, memory: memoryview) -> int:
        """Decrypted into the memory."""
        self.read_needs_write = False
        try:
            return self._sock.recv_into(memory)
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error
        except ssl.SSLWantWriteError as error:
            self.read_needs_write = True
            raise BlockingIOError from error

    def buffered(self) -> bool:
        """Whether the rest of a record is here."""
        return self._sock.pending() > 0

    def send(self, data: memoryview, *, more: bool = False) -> int:  # noqa: ARG002 records go as they are
        """Encrypted here, and sent. From TLS 1.3 on, sending never waits for the other side."""
        try:
            return self._sock.send(data)
        except ssl.SSLWantWriteError as error:
            raise BlockingIOError from error

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Read in chunks, which the page cache holds by now, encrypted and sent."""
        if not self._unsent:
            if self._memory is None:
                self._memory = memoryview(bytearray(_CHUNK))
            read = os.preadv(fd, [self._memory[: min(count, _CHUNK)]], offset)
            if read == 0:
                return 0
            self._unsent = self._memory[:read]
        sent = self.send(self._unsent)
        self._unsent = self._unsent[sent:]
        return sent

    def close(self) -> None:
        """Close the socket, without a farewell that the other side might not read."""
        self._sock.close()


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _remote(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return ""
