# SPDX-License-Identifier: Apache-2.0
"""Damaged copies that were set aside are fetched anew: from another member, or from the backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import ApiError
from shoal.origin import upkeep_metrics as metrics
from shoal.origin.bandwidth import Bandwidth
from shoal.store.ingest import Stalled
from shoal.store.threads import in_thread
from shoal.web.failures import CallFailed, NotFound

AT_ONCE = 2
"""Copies that are fetched at the same time."""

log = structlog.get_logger()


class DamagedCopies(Protocol):
    """What lies aside on this disk (`shoal.origin.local.LocalBlobs`). Blocks."""

    def damaged_copies(self) -> list[Digest]: ...
    def last_used_of_damaged(self, digest: Digest) -> float | None: ...
    def discard_damaged(self, digest: Digest) -> None: ...
    def put_back(self, digest: Digest) -> bool: ...


class Source(Protocol):
    """A blob that another member has (`shoal.origin.remote_blob.RemoteBlob`)."""

    size: int

    def segments(self, start: int, stop: int) -> AsyncIterator[bytes]: ...


Find = Callable[[Digest], Awaitable[Source]]
"""The blob from wherever it is but here; raises `CallFailed`."""

Store = Callable[[Digest, AsyncIterator[bytes], int, float | None], Awaitable[object]]
"""Verifies and keeps a copy that was used last at that time (epoch seconds)."""


class Refetcher:
    """Fetches one after the other; what could not be had is tried again by the next `look`."""

    def __init__(
        self,
        copies: DamagedCopies,
        find: Find,
        store: Store,
        owns: Callable[[Digest], bool],
        bandwidth: Bandwidth,
    ) -> None:
        """`owns`: whether this host should have the blob.

        Otherwise what lies aside is thrown away when another one has it.
        """
        self._copies = copies
        self._find = find
        self._store = store
        self._owns = owns
        self._bandwidth = bandwidth
        self._queue: asyncio.Queue[Digest] = asyncio.Queue()
        self._queued: set[Digest] = set()
        self.lacking: set[Digest] = set()
        """Blobs of which only a damaged copy was here at the last look, or since."""
        self.lost: set[Digest] = set()
        """Those of them that no member and no backend has."""

    def damaged(self, digest: Digest) -> None:
        """A copy was set aside: fetch it anew. For the event loop's thread."""
        self.lacking.add(digest)
        metrics.DAMAGED.set(len(self.lacking))
        if digest not in self._queued:
            self._queued.add(digest)
            self._queue.put_nowait(digest)

    async def look(self) -> None:
        """Find all that lies aside; what has come meanwhile is no longer lacking."""
        lacking = await in_thread(self._copies.damaged_copies)
        self.lacking = set(lacking)
        self.lost &= self.lacking
        metrics.DAMAGED.set(len(self.lacking))
        for digest in lacking:
            self.damaged(digest)

    async def run(self, interval: float) -> None:
        """Fetch for good; look for what lies aside every `interval` seconds."""

        async def look() -> None:
            while True:
                try:
                    await self.look()
                except OSError as error:
                    log.exception("cannot look for damaged copies", error=str(error))
                await asyncio.sleep(interval)

        async def work() -> None:
            while True:
                digest = await self._queue.get()
                try:
                    await self._fetch(digest)
                except OSError as error:  # a volume that failed; there may be others
                    log.exception(
                        "a damaged copy stays aside", digest=str(digest), error=str(error)
                    )
                finally:
                    self._queued.discard(digest)

        async with asyncio.TaskGroup() as group:
            group.create_task(look(), name="look for damaged copies")
            for _ in range(AT_ONCE):
                group.create_task(work(), name="fetching of damaged copies")

    async def _fetch(self, digest: Digest) -> None:
        used = await in_thread(self._copies.last_used_of_damaged, digest)
        try:
            blob = await self._find(digest)
            if self._owns(digest):
                await self._store(digest, self._slowly(blob), blob.size, used)
        except NotFound as error:
            if await in_thread(self._copies.put_back, digest):
                log.warning("a blob that was set aside is good, and put back", digest=str(digest))
                await self._done(digest)
                return
            self.lost.add(digest)
            log.error("a damaged blob is nowhere else", digest=str(digest), error=error.detail)  # noqa: TRY400
        except (CallFailed, ApiError, Stalled, OSError) as error:
            log.warning(
                "a damaged blob cannot be fetched yet", digest=str(digest), error=str(error)
            )
        else:
            if self._owns(digest):
                metrics.FETCHED.inc()
                log.info("a damaged blob was fetched anew", digest=str(digest), size=blob.size)
            await self._done(digest)

    async def _slowly(self, blob: Source) -> AsyncIterator[bytes]:
        async for chunk in blob.segments(0, blob.size):
            await self._bandwidth.take(len(chunk))
            yield chunk

    async def _done(self, digest: Digest) -> None:
        await in_thread(self._copies.discard_damaged, digest)
        self.lacking.discard(digest)
        self.lost.discard(digest)
        metrics.DAMAGED.set(len(self.lacking))
