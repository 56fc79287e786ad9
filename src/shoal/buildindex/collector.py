# SPDX-License-Identifier: Apache-2.0
"""Garbage collection of records: judges one repository after the other, and deletes what may go.

What may go is decided by `shoal.buildindex.garbage`. The blobs themselves are swept by the origins,
once no build-index wants them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import structlog

from shoal.buildindex import metrics, writes
from shoal.buildindex.config import GcConfig
from shoal.buildindex.database import PURGE_STEP
from shoal.buildindex.garbage import Condemned, GcReport, Tally, mark
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.store import Store
from shoal.buildindex.view import View
from shoal.model.errors import ApiError, Unavailable
from shoal.store.threads import in_thread

STEP = 500
"""Deletions in one transaction: pushes wait no longer than for these."""

PAGE = 1_000
"""Repositories that are listed at once."""

log = structlog.get_logger()


class Collector:
    """Collects the garbage of one build-index, at intervals and when it is asked for."""

    def __init__(
        self,
        store: Store,
        neighbours: Neighbours,
        config: GcConfig,
        *,
        tombstone_ttl: float,
        unwritten: Callable[[], Awaitable[int | None]],
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`tombstone_ttl`: seconds for which a deletion is remembered.

        `unwritten` gives the wall time (ms) of the oldest deletion that a backend was not told of:
        from then on all are remembered.
        """
        self._store = store
        self._neighbours = neighbours
        self._config = config
        self._tombstone_ttl = tombstone_ttl
        self._unwritten = unwritten
        self._wall_ms = wall_ms
        self._running = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Collect at the config's interval from now on, until `stop`."""
        if self._config.interval:
            self._loop = asyncio.create_task(self._collect_at_intervals(), name="collect garbage")

    async def stop(self) -> None:
        """End what is under way; what was deleted so far stays deleted."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def collect(self, *, dry_run: bool, grace: float | None = None) -> GcReport:
        """Delete the records that nothing has needed for `grace` seconds (None: the config's).

        A grace time below half of the config's is safe only while nothing is pushed. One run at a
        time: another one waits. Raises `Unavailable`, before anything is deleted, unless all
        neighbours were asked for what they have.
        """
        async with self._running:
            with metrics.COLLECTION_SECONDS.time():
                return await self._collect(dry_run, self._config.grace if grace is None else grace)

    async def _collect(self, dry_run: bool, grace: float) -> GcReport:
        await self._neighbours.refresh()
        unasked = self._neighbours.silent() + self._neighbours.behind()
        if unasked:
            raise Unavailable(
                "garbage is not collected: what the build-index(es) "
                f"{', '.join(unasked)} know of is not known here; start them, or take them out of "
                "`neighbours`"
            )
        tally = Tally()
        async for repository in self._repositories():
            contents = await self._store.contents(repository)
            condemned = await in_thread(
                mark,
                contents,
                now=self._wall_ms() / 1000,
                grace=grace,
                untagged=self._config.untagged,
            )
            tally.add(contents, condemned if dry_run else await self._delete(condemned))
        if not dry_run:
            await self._purge()
        released = await self._released(tally) if dry_run else []
        report = tally.report(dry_run=dry_run, released=released)
        log.info(
            "garbage collected",
            dry_run=dry_run,
            repositories=report.repositories,
            manifests=report.condemned_manifests,
            links=report.condemned_links,
        )
        return report

    async def _released(self, tally: Tally) -> list[str]:
        """The digests that the origins could sweep if this were no dry run."""
        digests = list(tally.mentions)
        live: dict[str, int] = {}
        for start in range(0, len(digests), STEP):
            step = digests[start : start + STEP]
            live |= await self._store.read(partial(View.mentions, digests=step))
        return tally.released(live)

    async def _repositories(self) -> AsyncIterator[str]:
        last, more = "", True
        while more:
            page = await self._store.read(partial(View.collected, last=last, count=PAGE))
            for name in page.names:
                yield name
                last = name
            more = page.more

    async def _delete(self, condemned: list[Condemned]) -> list[Condemned]:
        gone: list[Condemned] = []
        for start in range(0, len(condemned), STEP):
            step = condemned[start : start + STEP]
            deleted, records = await self._store.write(partial(writes.collect, condemned=step))
            await self._neighbours.spread(records)
            for one in deleted:
                metrics.COLLECTED.labels(one.kind).inc()
                log.info("deleted", kind=one.kind, repository=one.repository, name=one.name)
            gone += deleted
        return gone

    async def _purge(self) -> None:
        before = self._wall_ms() - round(self._tombstone_ttl * 1000)
        unwritten = await self._unwritten()
        if unwritten is not None:
            before = min(before, unwritten)
        while await self._store.purge(before) == PURGE_STEP:
            pass

    async def _collect_at_intervals(self) -> None:
        while True:
            await asyncio.sleep(self._config.interval * random.uniform(0.9, 1.1))
            try:
                await self.collect(dry_run=False)
            except ApiError as error:
                metrics.COLLECTIONS.labels("failed").inc()
                log.warning("garbage collection failed", error=error.message)
            except Exception:
                metrics.COLLECTIONS.labels("failed").inc()
                log.exception("garbage collection failed")
            else:
                metrics.COLLECTIONS.labels("done").inc()
