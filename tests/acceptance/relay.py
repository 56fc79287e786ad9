# SPDX-License-Identifier: Apache-2.0
"""A TCP relay that remembers what a client and a registry said, and can cut a long answer short."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_IDLE: Final = 30.0
"""Seconds after which a silent connection is given up."""

# Anywhere, not only where a line begins: on a kept connection a body stands before the next head.
_REQUEST: Final = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (/\S*) HTTP/1\.1\r\n((?:[^\r\n]+\r\n)*)\r\n"
)
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass(frozen=True)
class Recorded:
    """What a client asked for, and the status it was given."""

    method: str
    target: str
    headers: str
    status: int | None

    @property
    def query(self) -> dict[str, str]:
        """The target's parameters, decoded."""
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def blob(self) -> str | None:
        """The digest, when the target is a blob."""
        _, found, digest = urlsplit(self.target).path.partition("/blobs/sha256:")
        return f"sha256:{digest}" if found else None


@dataclass
class _Connection:
    asked: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)


class Relay(socketserver.ThreadingTCPServer):
    """Stands before the registry at `url`; `Relay.to` runs it."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, url: str, cut_after: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.upstream = (parts.hostname, parts.port)
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._cut_after = cut_after

    @classmethod
    @contextlib.contextmanager
    def to(cls, url: str, *, cut_after: int | None = None) -> Iterator[Relay]:
        """Relay to `url`; the first answer longer than `cut_after` bytes is cut there."""
        with cls(url, cut_after) as relay:
            thread = threading.Thread(target=relay.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            try:
                yield relay
            finally:
                relay.shutdown()
                thread.join()

    @property
    def url(self) -> str:
        """The relay's own base URL."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def was_cut(self) -> bool:
        """Whether an answer was cut short."""
        return self._cut_after is None

    def requests(self) -> list[Recorded]:
        """Every request so far, by connection and in order."""
        with self._lock:
            connections = [(bytes(c.asked), bytes(c.answered)) for c in self._connections]
        found = []
        for asked, answered in connections:
            statuses = [int(status) for status in _STATUS.findall(answered)]
            for number, (method, target, headers) in enumerate(_REQUEST.findall(asked)):
                status = statuses[number] if number < len(statuses) else None
                found.append(Recorded(method.decode(), target.decode(), headers.decode(), status))
        return found

    def connected(self) -> _Connection:
        """Take note of a new connection."""
        connection = _Connection()
        with self._lock:
            self._connections.append(connection)
        return connection

    def heard(self, to: bytearray, data: bytes) -> None:
        """Take note of what was said."""
        with self._lock:
            to += data

    def must_cut(self, answered: int) -> bool:
        """Whether this answer is the one to cut, which happens once."""
        with self._lock:
            if self._cut_after is None or answered < self._cut_after:
                return False
            self._cut_after = None
            return True


class _Handler(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        client: socket.socket = self.request
        connection = self.server.connected()
        with (
            contextlib.suppress(OSError),
            socket.create_connection(self.server.upstream, _IDLE) as upstream,
        ):
            client.settimeout(_IDLE)
            asking = threading.Thread(
                target=self._carry, args=(client, upstream, connection.asked), daemon=True
            )
            asking.start()
            self._carry(upstream, client, connection.answered, may_cut=True)
            asking.join()

    def _carry(
        self, source: socket.socket, sink: socket.socket, said: bytearray, *, may_cut: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.server.heard(said, data)
                sink.sendall(data)
                if may_cut and self.server.must_cut(len(said)):
                    source.shutdown(socket.SHUT_RDWR)
                    break
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR if may_cut else socket.SHUT_WR)
