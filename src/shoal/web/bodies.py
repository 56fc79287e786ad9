# SPDX-License-Identifier: Apache-2.0
"""Answer with a blob: whole or in part, from files by sendfile (RFC 9110, sections 13 and 14).

A body always has a Content-Length. When its source fails after the head has left, the connection is
cut: a client must never take a short body for a whole one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import structlog
from aiohttp import web

from shoal.model.digest import Digest
from shoal.store.threads import in_thread, open_file
from shoal.web import metrics
from shoal.web.conditions import not_modified, wanted_range
from shoal.web.ranges import content_range
from shoal.web.transmit import BodySender, body_sender

STALL_TIMEOUT = 60.0
"""Seconds after which a client that takes no byte is dropped."""

log = structlog.get_logger()


class HasDescriptor(Protocol):
    """An open file."""

    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class FileSegment:
    """The bytes [start, stop) of an open file: a descriptor, or an object that has one."""

    file: int | HasDescriptor
    start: int
    stop: int

    @property
    def descriptor(self) -> int:
        """The file's descriptor."""
        return self.file if isinstance(self.file, int) else self.file.fileno()


Segment = FileSegment | bytes | bytearray | memoryview


class Blob(Protocol):
    """Content of a known size that can be sent while it arrives."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def segments(self, start: int, stop: int) -> AsyncIterator[Segment]:
        """Give the bytes [start, stop) in order, exactly; fail rather than give fewer.

        A `FileSegment`'s file stays open until the next segment is asked for.
        """
        ...

    async def close(self) -> None:
        """Let go of what is held. Called once; no segment is asked for after it."""
        ...


class FileBlob:
    """A blob that is a whole file."""

    def __init__(self, file: int, size: int) -> None:
        """Take over an open descriptor."""
        self._file = file
        self.size = size

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open a file; raises `FileNotFoundError`."""
        file = await open_file(path)
        return cls(file, os.fstat(file).st_size)

    async def segments(self, start: int, stop: int) -> AsyncGenerator[FileSegment]:
        yield FileSegment(self._file, start, stop)

    async def close(self) -> None:
        await in_thread(os.close, self._file)


async def send_blob(
    request: web.Request,
    blob: Blob,
    *,
    digest: Digest,
    content_type: str = "application/octet-stream",
    headers: Mapping[str, str] | None = None,
    stall_timeout: float = STALL_TIMEOUT,
) -> web.StreamResponse:
    """Answer GET or HEAD with a blob, and close it.

    Knows Range, If-Range and If-None-Match; the entity tag is the digest. Raises `RangeInvalid`,
    and what the blob raises before its first byte; later failures cut the connection and are logged
    here.
    """
    try:
        return await _answer(
            request, blob, digest, {**(headers or {}), "Content-Type": content_type}, stall_timeout
        )
    finally:
        await blob.close()


async def _answer(
    request: web.Request,
    blob: Blob,
    digest: Digest,
    more: Mapping[str, str],
    stall_timeout: float,
) -> web.StreamResponse:
    etag = f'"{digest}"'
    identity = {
        "ETag": etag,
        "Docker-Content-Digest": str(digest),
        "Accept-Ranges": "bytes",
    }
    if not_modified(request, etag):
        return web.Response(status=304, headers=identity)
    headers = {**more, **identity}
    part = wanted_range(request, etag, blob.size)
    start, stop = (0, blob.size) if part is None else part
    if part is not None:
        headers["Content-Range"] = content_range(start, stop, blob.size)
    headers["Content-Length"] = str(stop - start)
    status = 200 if part is None else 206
    if request.method == "HEAD" or start == stop:
        return web.Response(status=status, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    segments = blob.segments(start, stop)
    if isinstance(segments, AsyncGenerator):
        async with aclosing(segments):
            await _Body(request, response, digest, stop - start).send(segments, stall_timeout)
    else:
        await _Body(request, response, digest, stop - start).send(segments, stall_timeout)
    return response


class _Body:
    """One body on its way, and what becomes of the connection when it cannot be finished."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, digest: Digest, size: int
    ) -> None:
        self._request = request
        self._response = response
        self._digest = digest
        self._size = size
        self._sent = 0

    async def send(self, segments: AsyncIterator[Segment], stall_timeout: float) -> None:
        # The head waits for the first bytes: a source that fails at once still gets its own status.
        first = await anext(segments, None)
        await self._response.prepare(self._request)
        try:
            async with body_sender(self._request, self._response, stall_timeout) as sender:
                await self._send_all(first, segments, sender)
        except asyncio.CancelledError:
            self._cut()
            raise
        except ConnectionError as error:
            self._cut()
            metrics.BODIES_CUT.labels("client").inc()
            log.info("client left", **self._progress(), why=str(error))
        except Exception as error:  # noqa: BLE001 the head is out: all that is left is to cut
            self._cut()
            metrics.BODIES_CUT.labels("source").inc()
            why = f"{type(error).__name__}: {error}"
            log.error("body cut short", **self._progress(), why=why)  # noqa: TRY400 one line

    async def _send_all(
        self, segment: Segment | None, segments: AsyncIterator[Segment], sender: BodySender
    ) -> None:
        while segment is not None:
            length = _length(segment)
            if self._sent + length > self._size:
                raise SegmentsWrong(f"the source gave more than the {self._size} bytes asked for")
            if isinstance(segment, FileSegment):
                await sender.file(segment.descriptor, segment.start, segment.stop)
            else:
                await sender.data(segment)
            self._sent += length
            segment = await anext(segments, None)
        if self._sent < self._size:
            raise SegmentsWrong(f"the source gave {self._sent} of the {self._size} bytes asked for")

    def _progress(self) -> dict[str, object]:
        return {"digest": str(self._digest), "sent": self._sent, "of": self._size}

    def _cut(self) -> None:
        self._response.force_close()
        if self._request.transport is not None:
            self._request.transport.abort()


class SegmentsWrong(Exception):
    """The source of a blob did not give the bytes that were asked for."""


def _length(segment: Segment) -> int:
    if isinstance(segment, FileSegment):
        return segment.stop - segment.start
    return len(memoryview(segment).cast("B"))
