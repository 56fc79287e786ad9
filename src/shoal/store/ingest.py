# SPDX-License-Identifier: Apache-2.0
"""From the network to disk: a batch is hashed and written in a thread while the next one comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from shoal.model.errors import TooLarge
from shoal.store.threads import submit
from shoal.store.writer import BlobWriter

BATCH_BYTES = 1024 * 1024
"""Bytes handed to a thread at a time. Smaller batches cost more in hand-overs than they save."""


class Stalled(Exception):
    """The sender stayed connected and sent nothing for too long."""


async def ingest(
    source: AsyncIterator[bytes], writer: BlobWriter, *, limit: int | None, idle_timeout: float
) -> int:
    """Append all that `source` gives, in order; return the number of bytes.

    At most two batches are in memory: one being written, one being collected; the source waits
    meanwhile. Raises `Stalled` when nothing came for `idle_timeout` seconds, `TooLarge` when more
    than `limit` bytes came, the source's own error when the client vanished, and `OSError` when the
    disk is full. What was received before an error is appended (but for a batch that could not be
    written), and no thread touches the writer any more when this returns or raises.
    """
    pipeline = _Pipeline(writer)
    received = 0
    try:
        while (chunk := await _next(source, idle_timeout, received)) is not None:
            received += len(chunk)
            if limit is not None and received > limit:
                raise TooLarge(f"more than the {limit} bytes that are taken here")
            await pipeline.add(chunk)
    except BaseException:
        # The first error is the one to tell; what is under way must still come to rest.
        with suppress(OSError):
            await pipeline.finish()
        raise
    await pipeline.finish()
    return received


async def _next(source: AsyncIterator[bytes], idle_timeout: float, received: int) -> bytes | None:
    try:
        async with asyncio.timeout(idle_timeout):
            return await anext(source, None)
    except TimeoutError as error:
        raise Stalled(
            f"no byte came for {idle_timeout:g} s, after {received} bytes of this request"
        ) from error


class _Pipeline:
    """At most one batch in a thread, one being collected."""

    def __init__(self, writer: BlobWriter) -> None:
        self._writer = writer
        self._batch: list[bytes] = []
        self._size = 0
        self._running: asyncio.Future[None] | None = None

    async def add(self, chunk: bytes) -> None:
        self._batch.append(chunk)
        self._size += len(chunk)
        if self._size >= BATCH_BYTES:
            await self._rest()
            self._start()

    async def finish(self) -> None:
        await self._rest()
        if self._batch:
            self._start()
            await self._rest()

    def _start(self) -> None:
        batch, self._batch, self._size = self._batch, [], 0
        self._running = submit(self._writer.append, batch)

    async def _rest(self) -> None:
        """Wait for the batch in the thread, even when cancelled: a writer has one user."""
        running = self._running
        cancelled: asyncio.CancelledError | None = None
        while running is not None and not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
        self._running = None
        if cancelled is not None:
            raise cancelled
        if running is not None:
            running.result()
