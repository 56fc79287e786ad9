# SPDX-License-Identifier: Apache-2.0
"""Prefetch: blobs that an operator wants on the origins before anybody pulls them.

Who asks does not wait for the bytes. What is to be fetched is noted, and fetched a few at a time,
so that blobs which somebody waits for have their turn beside them. Notes are in memory alone: after
a restart the operator asks again, and is told what is there.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import ApiError, BlobUnknown, StillFetching, Unavailable
from shoal.origin import metrics
from shoal.origin.messages import PrefetchAnswer
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Unreachable

MAX_WAITING = 10_000
"""Blobs that one origin has noted: more than an image may have."""

PATIENCE = 60.0
"""Seconds after which it is asked again how far a transfer is."""

BUSY = 10
"""Seconds after which those should come back for whom there was no place."""

log = structlog.get_logger()

Wanted = tuple[Digest, str]
"""A blob, and the repository whose backend has it."""


class Origins(Protocol):
    """All origins (`shoal.origin.client.OriginCluster`)."""

    async def stat(
        self, digest: Digest, *, deadline: Deadline, keep: bool = False, namespace: str = ""
    ) -> int | None: ...


class Fetcher(Protocol):
    """Fetches what no origin has (`shoal.origin.refresh.Refresh`)."""

    async def stat(
        self, digest: Digest, repository: str, deadline: Deadline, *, led: bool = False
    ) -> int: ...

    async def bring(
        self, digest: Digest, repository: str, deadline: Deadline, *, led: bool = False
    ) -> int: ...


class Prefetcher:
    """What this origin was asked to have ready, and still fetches."""

    def __init__(
        self,
        origins: Origins,
        fetcher: Fetcher,
        *,
        concurrency: int,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`concurrency`: blobs that are fetched at the same time."""
        self._origins = origins
        self._fetcher = fetcher
        self._concurrency = concurrency
        self._max_waiting = max_waiting
        self._waiting: dict[Wanted, int] = {}
        self._fetching: dict[Wanted, int] = {}
        self._workers: set[asyncio.Task[None]] = set()

    async def begin(self, digest: Digest, repository: str, deadline: Deadline) -> PrefetchAnswer:
        """See to it that an origin has the blob; returns when it has, or when it is noted.

        Raises `BlobUnknown` when neither an origin nor the repository's backend has it,
        `CallFailed` when they could not be asked, `Unavailable` when too much is noted already.
        """
        wanted = (digest, repository)
        if (size := self._noted(wanted)) is not None:
            return PrefetchAnswer(size, ready=False)
        silent: Unreachable | None = None
        try:
            # Members that hang leave time for the backend.
            soon = deadline.at_most(deadline.remaining() / 2)
            size = await self._origins.stat(digest, deadline=soon, keep=True)
        except Unreachable as error:
            silent = error
        if size is not None:
            return PrefetchAnswer(size, ready=True)
        try:
            size = await self._fetcher.stat(digest, repository, deadline, led=True)
        except BlobUnknown as absent:
            if silent is not None:
                raise silent from absent
            raise
        self._note(wanted, size)
        return PrefetchAnswer(size, ready=False)

    def _noted(self, wanted: Wanted) -> int | None:
        return self._fetching.get(wanted, self._waiting.get(wanted))

    def _note(self, wanted: Wanted, size: int) -> None:
        if self._noted(wanted) is not None:
            return  # by another request, while this one asked the backend
        if len(self._waiting) >= self._max_waiting:
            raise Unavailable(
                f"{len(self._waiting)} blobs wait here to be prefetched, which is the most that is "
                f"noted; {wanted[0]} is not: send the request again later",
                detail={"digest": str(wanted[0])},
                retry_after=BUSY,
            )
        self._waiting[wanted] = size
        metrics.PREFETCHES_WAITING.set(len(self._waiting))
        if len(self._workers) < self._concurrency:
            worker = asyncio.create_task(self._work(), name="prefetch")
            self._workers.add(worker)

    async def _work(self) -> None:
        """Fetch until nothing waits."""
        try:
            await self._fetch_all()
        finally:
            # At once, as what is noted from now on needs another worker.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _fetch_all(self) -> None:
        while self._waiting:
            wanted, size = next(iter(self._waiting.items()))
            del self._waiting[wanted]
            metrics.PREFETCHES_WAITING.set(len(self._waiting))
            self._fetching[wanted] = size
            try:
                await self._fetch(*wanted)
            finally:
                del self._fetching[wanted]

    async def _fetch(self, digest: Digest, repository: str) -> None:
        """Fetch one; it is tried once: whoever wants it asks again, or pulls it."""
        outcome = "failed"
        try:
            await self._bring(digest, repository)
            outcome = "fetched"
        except (ApiError, CallFailed, OSError) as error:
            log.warning(
                "prefetch failed", digest=str(digest), repository=repository, error=str(error)
            )
        except Exception:  # a defect that one blob meets must not leave the others waiting
            log.exception("prefetch failed unexpectedly", digest=str(digest), repository=repository)
        metrics.PREFETCHES.labels(outcome).inc()

    async def _bring(self, digest: Digest, repository: str) -> None:
        """Return when the transfer has ended, which has bounds of its own.

        Another one that began beside it would take a place from those that somebody waits for.
        """
        while True:
            try:
                await self._fetcher.bring(digest, repository, Deadline.after(PATIENCE), led=True)
            except StillFetching:
                continue
            return

    async def close(self) -> None:
        """Forget what is noted, and end what is under way."""
        self._waiting.clear()
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
