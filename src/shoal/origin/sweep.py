# SPDX-License-Identifier: Apache-2.0
"""The sweep phase of garbage collection: blobs of this origin that no repository needs any more.

A copy goes when it was unused for the grace time and every build-index says that it has no record
of the digest. Between that answer and the removal somebody may have begun to rely on the copy, so
its age is looked at again under the lock under which it would have been renewed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import BadRequest
from shoal.origin import metrics
from shoal.origin.messages import MAX_LISTED, SweepReport, Swept
from shoal.origin.retention import Copy, stays
from shoal.store.threads import in_thread
from shoal.web.deadline import LONGEST, Deadline
from shoal.web.failures import CallFailed

BATCH = 1_000
"""Digests that the build-indexes are asked about at once."""

ASK_TIMEOUT = 30.0
"""Seconds for all build-indexes to answer one batch."""

SUSPICIOUS_FROM = 100
SUSPICIOUS_SHARE = 0.5
"""A sweep that nobody asked for removes at most this share of an origin's blobs, when it has more
than so many to remove."""

log = structlog.get_logger()


class Copies(Protocol):
    """The blobs on this origin's disk (`shoal.origin.local.LocalBlobs`). Blocks."""

    def copies(self) -> Iterator[Copy]: ...

    def give_up(self, digest: Digest, cutoff: float) -> int | None: ...


AskWanted = Callable[[Sequence[Digest], Deadline], Awaitable[Collection[Digest]]]
"""Those that a repository has a record of, as all build-indexes together know; raises `CallFailed`
when one of them could not be asked."""


class Sweeper:
    """Sweeps one origin, one sweep at a time."""

    def __init__(
        self,
        name: str,
        copies: Copies,
        wanted: AskWanted,
        forget: Callable[[Digest], None],
        *,
        grace: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`wanted` asks the build-indexes.

        `name` is this origin's; `forget` takes a blob that is gone out of the peer endpoint;
        `grace` is in seconds; `clock` gives epoch seconds, the same as that of `copies`.
        """
        self._name = name
        self._copies = copies
        self._wanted = wanted
        self._forget = forget
        self._grace = grace
        self._clock = clock
        self._sweeping = asyncio.Lock()

    async def sweep(
        self,
        *,
        dry_run: bool,
        deadline: Deadline,
        grace: float | None = None,
        released: Collection[Digest] = (),
    ) -> SweepReport:
        """Remove what nobody needs and nobody has used for `grace` seconds; report it.

        The grace time counts from the beginning of the sweep: what is used while it runs is young,
        however short the time. It ends early, and says so in the report, when a build-index cannot
        be asked or the deadline passes; what was not decided by then stays.
        `released`, of a dry run: digests that count as unwanted, whatever the build-indexes say.
        """
        if released and not dry_run:
            raise BadRequest("digests can be named as released only in a dry run")
        async with self._sweeping:
            cutoff = self._clock() - (self._grace if grace is None else grace)
            order = _Order(cutoff, dry_run, deadline, frozenset(released))
            count = _Count()
            copies = self._copies.copies()
            try:
                while batch := await in_thread(_next, copies):
                    if deadline.expired:
                        count.stopped = "the deadline of the request passed"
                        break
                    await self._sweep_batch(batch, order, count)
            except CallFailed as error:
                count.stopped = f"not all build-indexes could be asked: {error}"
            report = count.report(self._name, dry_run)
        if report.stopped:
            log.warning("sweep ended early", why=report.stopped)
        if not dry_run:
            metrics.SWEEPS.labels("stopped" if report.stopped else "done").inc()
        log.info(
            "sweep done",
            dry_run=dry_run,
            examined=report.examined,
            removed=report.removed,
            freed=report.freed,
        )
        return report

    async def sweep_every(self, interval: float) -> None:
        """Sweep for good, with `interval` seconds between two sweeps; failures are logged."""
        while True:
            # Not in step with the other origins, which were started at the same time.
            await asyncio.sleep(interval * random.uniform(0.9, 1.1))
            try:
                await self.sweep_unless_suspicious(Deadline.after(LONGEST))
            except OSError as error:
                metrics.SWEEPS.labels("failed").inc()
                log.exception("sweep failed", error=str(error))

    async def sweep_unless_suspicious(self, deadline: Deadline) -> SweepReport:
        """Sweep, unless that would remove so much that a lost database is the likelier cause.

        Returns the report of the sweep, or of the dry run after which there was none: it has to see
        all blobs before anything is removed.
        """
        would = await self.sweep(dry_run=True, deadline=deadline)
        if would.stopped:
            metrics.SWEEPS.labels("stopped").inc()
            return would
        if not suspicious(would):
            return await self.sweep(dry_run=False, deadline=deadline)
        metrics.SWEEPS.labels("refused").inc()
        log.error(
            "sweep refused: most blobs of this origin belong to no repository. If a build-index "
            "lost its database, restore it; if this is right, run `shoal gc`",
            would_remove=would.removed,
            examined=would.examined,
        )
        return would

    async def _sweep_batch(self, batch: Iterable[Copy], order: _Order, count: _Count) -> None:
        candidates = []
        for copy in batch:
            count.examined += 1
            if reason := stays(copy, order.cutoff):
                count.stayed[reason] += 1
            else:
                candidates.append(copy)
        if not candidates:
            return
        soon = order.deadline.at_most(ASK_TIMEOUT)
        wanted = await self._wanted([copy.digest for copy in candidates], soon)
        needed = set(wanted) - order.released
        unwanted = [copy for copy in candidates if copy.digest not in needed]
        count.stayed["wanted"] += len(candidates) - len(unwanted)
        if not order.dry_run:
            gone = await in_thread(self._give_up, unwanted, order.cutoff)
            for copy in gone:
                self._forget(copy.digest)
                metrics.SWEPT_BLOBS.inc()
                metrics.SWEPT_BYTES.inc(copy.size)
                log.info("unused blob removed", digest=str(copy.digest), size=copy.size)
            count.stayed["relied_on"] += len(unwanted) - len(gone)
            unwanted = gone
        for copy in unwanted:
            count.remove(copy, "no repository has a record of this blob")

    def _give_up(self, unwanted: Sequence[Copy], cutoff: float) -> list[Copy]:
        """Those that could be removed. Blocks."""
        return [copy for copy in unwanted if self._copies.give_up(copy.digest, cutoff) is not None]


def suspicious(would: SweepReport) -> bool:
    """Whether a sweep would remove so much that somebody should look at it first."""
    return would.removed > SUSPICIOUS_FROM and would.removed > SUSPICIOUS_SHARE * would.examined


def _next(copies: Iterator[Copy]) -> list[Copy]:
    return list(islice(copies, BATCH))


@dataclass(frozen=True, slots=True)
class _Order:
    """What one sweep is to do."""

    cutoff: float
    dry_run: bool
    deadline: Deadline
    released: frozenset[Digest]


@dataclass
class _Count:
    """What a sweep has seen so far, in bounded memory."""

    examined: int = 0
    removed: int = 0
    freed: int = 0
    stayed: Counter[str] = field(default_factory=Counter)
    items: list[Swept] = field(default_factory=list)
    stopped: str = ""

    def remove(self, copy: Copy, why: str) -> None:
        self.removed += 1
        self.freed += copy.size
        if len(self.items) < MAX_LISTED:
            self.items.append(Swept(str(copy.digest), copy.size, why))

    def report(self, origin: str, dry_run: bool) -> SweepReport:
        return SweepReport(
            origin=origin,
            dry_run=dry_run,
            examined=self.examined,
            young=self.stayed["young"],
            kept=self.stayed["kept"],
            in_use=self.stayed["in_use"],
            wanted=self.stayed["wanted"],
            relied_on=self.stayed["relied_on"],
            removed=self.removed,
            freed=self.freed,
            items=self.items,
            stopped=self.stopped,
        )
