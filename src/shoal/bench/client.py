# SPDX-License-Identifier: Apache-2.0
"""A client that costs next to nothing, so that a measurement shows the server.

Bodies leave by sendfile; what is received goes into one buffer and is thrown away. All of this
blocks: call it in a thread.
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from pathlib import Path
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


def push_blob(registry: str, repository: str, path: Path, digest: str) -> Transfer:
    """Push a file as a blob, the way skopeo does: POST, one PATCH with the body, PUT."""
    size = path.stat().st_size
    connection, _ = _connect(registry)
    began, cpu = time.perf_counter(), time.thread_time()
    try:
        location = _step(connection, "POST", f"/v2/{repository}/blobs/uploads/", 202)
        first_byte_s = time.perf_counter() - began
        location = _step(connection, "PATCH", location, 202, body=path)
        joint = "&" if "?" in location else "?"
        _step(connection, "PUT", f"{location}{joint}digest={digest}", 201)
    except (OSError, http.client.HTTPException) as error:
        raise TransferFailed(f"push of {digest} to {registry}: {error!r}") from error
    finally:
        connection.close()
    wall_s = time.perf_counter() - began
    return Transfer(size, wall_s, first_byte_s, time.thread_time() - cpu)


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


def _connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.netloc, timeout=STALL_S), parts.path


def _step(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    expected: int,
    body: Path | None = None,
) -> str:
    """Send one request of an upload; return where the next one goes."""
    connection.putrequest(method, target)
    connection.putheader("Content-Length", str(0 if body is None else body.stat().st_size))
    if body is not None:
        connection.putheader("Content-Type", "application/octet-stream")
    connection.endheaders()
    if body is not None:
        with body.open("rb") as file:
            connection.sock.sendfile(file)
    answer = connection.getresponse()
    if answer.status != expected:
        raise _refused(method, target, answer)
    answer.read()
    parts = urlsplit(answer.headers.get("Location", ""))
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _refused(method: str, url: str, answer: http.client.HTTPResponse) -> TransferFailed:
    text = answer.read(500).decode(errors="replace")
    return TransferFailed(f"{method} {url}: {answer.status} {answer.reason}: {text}")
