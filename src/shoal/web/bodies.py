# SPDX-License-Identifier: Apache-2.0
"""Answer with a blob: whole or in parts, from files by sendfile (RFC 9110, sections 13 and 14).

A body always has a Content-Length. When its source fails after the head has left, the connection is
cut: a client must never take a short body for a whole one.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import structlog
from aiohttp import web

from shoal.model.digest import Digest
from shoal.store.threads import in_thread, open_file
from shoal.web import metrics
from shoal.web.conditions import not_modified, wanted_ranges
from shoal.web.ranges import ByteRange, content_range
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


class MemoryBlob:
    """A blob that is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    async def segments(self, start: int, stop: int) -> AsyncGenerator[memoryview]:
        yield memoryview(self._data)[start:stop]

    async def close(self) -> None: ...


async def read_whole(blob: Blob) -> bytes:
    """All bytes of a small blob, which stays open."""
    data = bytearray()
    async for segment in blob.segments(0, blob.size):
        if isinstance(segment, FileSegment):
            count = segment.stop - segment.start
            data += await in_thread(os.pread, segment.descriptor, count, segment.start)
        else:
            data += segment
    return bytes(data)


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
    ranges = wanted_ranges(request, etag, blob.size)
    if ranges is None:
        parts = [_Part(ByteRange(0, blob.size))]
    elif len(ranges) == 1:
        parts = [_Part(ranges[0])]
        headers["Content-Range"] = content_range(*ranges[0], blob.size)
    else:
        boundary = secrets.token_hex(16)
        parts = _multipart(ranges, blob.size, headers["Content-Type"], boundary)
        headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    size = sum(map(_Part.length, parts))
    headers["Content-Length"] = str(size)
    status = 200 if ranges is None else 206
    if request.method == "HEAD" or size == 0:
        return web.Response(status=status, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    async with aclosing(_segments(blob, parts)) as segments:
        await _Body(request, response, digest, size).send(segments, stall_timeout)
    return response


class _Part(NamedTuple):
    """A piece of a body: what goes before it, and the bytes of the blob."""

    range: ByteRange
    head: bytes = b""

    def length(self) -> int:
        return len(self.head) + self.range.stop - self.range.start


def _multipart(ranges: list[ByteRange], size: int, kind: str, boundary: str) -> list[_Part]:
    """The parts of a ``multipart/byteranges`` body (RFC 9110, section 14.6), its end included."""
    parts = []
    for number, part in enumerate(ranges):
        described = f"Content-Type: {kind}\r\nContent-Range: {content_range(*part, size)}"
        before = "\r\n" if number else ""
        parts.append(_Part(part, f"{before}--{boundary}\r\n{described}\r\n\r\n".encode()))
    return [*parts, _Part(ByteRange(0, 0), f"\r\n--{boundary}--\r\n".encode())]


async def _segments(blob: Blob, parts: Iterable[_Part]) -> AsyncGenerator[Segment]:
    """Give the parts in order; raise `SegmentsWrong` when the blob gives other bytes than asked."""
    for part, head in parts:
        size = left = part.stop - part.start
        if not size:
            yield head
            continue
        segments = blob.segments(part.start, part.stop)
        try:
            async for segment in segments:
                left -= _length(segment)
                if left < 0:
                    raise SegmentsWrong(f"the source gave more than the {size} bytes asked for")
                # With the first bytes, not before: until then, a failure has a status of its own.
                if head:
                    yield head
                    head = b""  # noqa: PLW2901
                yield segment
        finally:
            if isinstance(segments, AsyncGenerator):
                await segments.aclose()
        if left:
            raise SegmentsWrong(f"the source gave {size - left} of the {size} bytes asked for")


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
            if isinstance(segment, FileSegment):
                await sender.file(segment.descriptor, segment.start, segment.stop)
            else:
                await sender.data(segment)
            self._sent += _length(segment)
            segment = await anext(segments, None)

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
