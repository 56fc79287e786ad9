# SPDX-License-Identifier: Apache-2.0
"""A client that costs next to nothing, so that a measurement shows the server.

Bodies leave by sendfile; what is received goes into one buffer and is thrown away. All of this
blocks: call it in a thread.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

STALL_S = 60.0
"""Seconds without a byte after which a transfer has failed."""

_BUFFER = 1 << 20


class TransferFailed(Exception):
    """A transfer that did not end as it must; the message names the request and the answer."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one transfer took."""

    size: int
    wall_s: float
    first_byte_s: float
    """From the start to the first byte of the body (download) or of the first answer (upload)."""
    client_cpu_s: float


def download(url: str) -> Transfer:
    """GET a URL and discard the body."""
    buffer = memoryview(bytearray(_BUFFER))
    connection, path = _connect(url)
    began, cpu = time.perf_counter(), time.thread_time()
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise _refused("GET", url, answer)
        size = answer.readinto(buffer[:1])
        first_byte_s = time.perf_counter() - began
        while received := answer.readinto(buffer):
            size += received
        expected = int(answer.headers["Content-Length"])
    except (OSError, http.client.HTTPException) as error:
        raise TransferFailed(f"GET {url}: {error!r}") from error
    finally:
        connection.close()
    if size != expected:
        raise TransferFailed(f"GET {url}: {size} of {expected} bytes came")
    wall_s = time.perf_counter() - began
    return Transfer(size, wall_s, first_byte_s, time.thread_time() - cpu)


@dataclass(frozen=True, slots=True)
class Salted:
    """A file with some bytes before it: as many different blobs as there are salts."""

    path: Path
    salt: bytes

    def digest(self) -> str:
        """Hash it all."""
        hashed = hashlib.sha256(self.salt)
        with self.path.open("rb") as file:
            while block := file.read(_BUFFER):
                hashed.update(block)
        return f"sha256:{hashed.hexdigest()}"


Source = Path | Salted | bytes
"""What a blob is sent from."""


def push_blob(registry: str, repository: str, source: Source, digest: str) -> Transfer:
    """Push a blob over a connection of its own."""
    with RegistryConnection(registry) as connection:
        return connection.push_blob(repository, source, digest)


class RegistryConnection:
    """Pushes over one connection, a request at a time, which is kept from one to the next."""

    def __init__(self, registry: str, *, timeout: float = STALL_S) -> None:
        """`timeout`: seconds without a byte after which a request has failed."""
        self._registry = registry
        self._connection, _ = _connect(registry, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def has_blob(self, repository: str, digest: str) -> bool:
        """Ask by HEAD, as clients do before they send a blob."""
        path = f"/v2/{repository}/blobs/{digest}"
        with self._reporting(f"HEAD {path}"):
            self._connection.request("HEAD", path)
            answer = self._connection.getresponse()
            answer.read()
            if answer.status not in {200, 404}:
                raise _refused("HEAD", path, answer)
            return answer.status == 200

    def push_blob(self, repository: str, source: Source, digest: str) -> Transfer:
        """Push a blob the way skopeo does: POST, one PATCH with the body, PUT."""
        began, cpu = time.perf_counter(), time.thread_time()
        with self._reporting(f"push of {digest}"):
            location = self._step("POST", f"/v2/{repository}/blobs/uploads/", 202)
            first_byte_s = time.perf_counter() - began
            location = self._step("PATCH", location, 202, source)
            joint = "&" if "?" in location else "?"
            self._step("PUT", f"{location}{joint}digest={digest}", 201)
        wall_s = time.perf_counter() - began
        return Transfer(_size(source), wall_s, first_byte_s, time.thread_time() - cpu)

    def put_manifest(
        self, repository: str, reference: str, body: bytes, kind: str, tags: Sequence[str] = ()
    ) -> None:
        """PUT a manifest; `tags` name it as well when the reference is its digest."""
        path = f"/v2/{repository}/manifests/{reference}"
        query = "&".join(f"tag={tag}" for tag in tags)
        with self._reporting(f"PUT {path}"):
            self._step("PUT", f"{path}?{query}" if query else path, 201, body, kind)

    @contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise TransferFailed(f"{what} at {self._registry}: {error!r}") from error

    def _step(
        self,
        method: str,
        target: str,
        expected: int,
        source: Source = b"",
        kind: str = "application/octet-stream",
    ) -> str:
        """Send one request; return where the Location of its answer leads."""
        self._connection.putrequest(method, target)
        self._connection.putheader("Content-Length", str(_size(source)))
        if source:
            self._connection.putheader("Content-Type", kind)
        self._connection.endheaders()
        _send(self._connection.sock, source)
        answer = self._connection.getresponse()
        if answer.status != expected:
            raise _refused(method, target, answer)
        answer.read()
        parts = urlsplit(answer.headers.get("Location", ""))
        return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _size(source: Source) -> int:
    match source:
        case Path():
            return source.stat().st_size
        case Salted(path, salt):
            return len(salt) + path.stat().st_size
        case _:
            return len(source)


def _send(sock: socket.socket, source: Source) -> None:
    match source:
        case Path():
            with source.open("rb") as file:
                sock.sendfile(file)
        case Salted(path, salt):
            sock.sendall(salt)
            with path.open("rb") as file:
                sock.sendfile(file)
        case _:
            sock.sendall(source)


def exists(url: str) -> bool:
    """Whether HEAD answers 200."""
    connection, path = _connect(url)
    try:
        connection.request("HEAD", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException) as error:
        raise TransferFailed(f"HEAD {url}: {error!r}") from error
    finally:
        connection.close()


def _connect(url: str, timeout: float = STALL_S) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.netloc, timeout=timeout), parts.path


def _refused(method: str, url: str, answer: http.client.HTTPResponse) -> TransferFailed:
    text = answer.read(500).decode(errors="replace")
    return TransferFailed(f"{method} {url}: {answer.status} {answer.reason}: {text}")
