# SPDX-License-Identifier: Apache-2.0
"""From the network to disk: a batch is hashed and written in a thread while the next one comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from shoal.model.errors import TooLarge
from shoal.store.budget import ByteBudget
from shoal.store.threads import submit
from shoal.store.writer import BlobWriter

BATCH_BYTES = 1024 * 1024
"""Bytes handed to a thread at a time. Smaller batches cost more in hand-overs than they save."""

BATCH_AGE = 0.05
"""Seconds after which a smaller batch is handed over as well: a slow sender keeps no memory."""

WAITING = ByteBudget(32 * 1024 * 1024)
"""What waits for the disk in this process. It keeps every thread of the disk busy, and bounds the
memory however many send at once."""


class Stalled(Exception):
    """The sender stayed connected and sent nothing for too long."""


async def ingest(
    source: AsyncIterator[bytes],
    writer: BlobWriter,
    *,
    limit: int | None,
    idle_timeout: float,
    budget: ByteBudget = WAITING,
) -> int:
    """Append all that `source` gives, in order; return the number of bytes.

    At most two batches are in memory, one being written and one being collected, and they count
    against the budget that all share; the source waits meanwhile. Raises `Stalled` when nothing
    came for `idle_timeout` seconds, `TooLarge` when more than `limit` bytes came, the source's own
    error when the client vanished, and `OSError` when the disk is full. What was received before an
    error is appended (but for a batch that could not be written, and what came after it), and no
    thread touches the writer any more when this returns or raises.
    """
    pipeline = _Pipeline(writer, budget)
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

    def __init__(self, writer: BlobWriter, budget: ByteBudget) -> None:
        self._writer = writer
        self._budget = budget
        self._batch: list[bytes] = []
        self._size = 0
        self._running: asyncio.Future[None] | None = None
        self._aging: asyncio.TimerHandle | None = None

    async def add(self, chunk: bytes) -> None:
        if not self._budget.take_now(len(chunk)):
            # Who waits for memory holds none, or all could wait for each other.
            await self._flush()
            await self._budget.take(len(chunk))
        self._batch.append(chunk)
        self._size += len(chunk)
        if self._size >= BATCH_BYTES:
            await self._rest()
            if self._batch:
                self._start()
        elif self._aging is None:
            self._age()

    async def finish(self) -> None:
        try:
            await self._flush()
        finally:
            self._drop()

    async def _flush(self) -> None:
        await self._rest()
        if self._batch:
            self._start()
            await self._rest()

    def _start(self) -> None:
        batch, size = self._clear()
        self._running = submit(self._writer.append, batch)
        self._running.add_done_callback(lambda _: self._budget.give_back(size))

    def _age(self) -> None:
        self._aging = asyncio.get_running_loop().call_later(BATCH_AGE, self._aged)

    def _aged(self) -> None:
        self._aging = None
        if self._running is None:
            self._start()
        elif not self._running.done():
            self._age()
        elif self._running.exception() is None:  # else: whoever waits next is told
            self._start()

    async def _rest(self) -> None:
        """Wait for the batch in the thread, even when cancelled: a writer has one user."""
        running = self._running
        cancelled: asyncio.CancelledError | None = None
        while running is not None and not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
            # Meanwhile the next batch may have come of age.
            running = self._running
        self._running = None
        if running is not None and running.exception() is not None:
            self._drop()  # bytes after a gap are worth nothing
        if cancelled is not None:
            raise cancelled
        if running is not None:
            running.result()

    def _drop(self) -> None:
        _, size = self._clear()
        self._budget.give_back(size)

    def _clear(self) -> tuple[list[bytes], int]:
        if self._aging is not None:
            self._aging.cancel()
            self._aging = None
        batch, self._batch = self._batch, []
        size, self._size = self._size, 0
        return batch, size
