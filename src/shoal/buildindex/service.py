# SPDX-License-Identifier: Apache-2.0
"""What the build-index does. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from shoal.buildindex.clock import HybridClock
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.records import Changes, Page, TagRecord
from shoal.buildindex.resolver import Candidate, Resolver
from shoal.buildindex.tags import TagStore
from shoal.model.digest import Digest
from shoal.model.errors import ApiError, ManifestUnknown, NameUnknown
from shoal.model.manifest import IndexChildren
from shoal.web.deadline import Deadline

MAX_PAGE = 10_000
"""Names in one answer."""

CLOCK_SKEW_MS = 60_000
"""A neighbour whose clock is ahead by more than this is worth a warning."""

READY_FOR = 1.0
"""Seconds for which having been ready is believed, so that probes rarely write to the disk."""

log = structlog.get_logger()


class BuildIndex:
    """Tags, their dependency check, and their spreading to the neighbours."""

    def __init__(
        self,
        store: TagStore,
        resolver: Resolver,
        *,
        neighbours: Callable[[BuildIndex], Neighbours],
        origins_missing: Callable[[], Awaitable[list[str]]],
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`origins_missing` says what keeps the origins from taking a push, if anything does."""
        self._store = store
        self._resolver = resolver
        self._neighbours = neighbours(self)
        self._origins_missing = origins_missing
        self._wall_ms = wall_ms
        self._clock = HybridClock(store.node)
        self._ready_until = 0.0
        self._writes: set[asyncio.Task[TagRecord]] = set()

    async def start(self, catch_up_timeout: float) -> None:
        """Continue where the database ends, take what the neighbours have, and follow them.

        Nothing may be served before this returns: tags would be older than what was acknowledged.
        """
        newest = await self._store.newest_version()
        if newest is not None:
            self._clock.observe(newest)
        await self._neighbours.catch_up(catch_up_timeout)
        self._neighbours.follow()

    async def stop(self) -> None:
        """Finish what is under way and close the database."""
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._neighbours.stop()
        await self._store.close()

    # -- tags ---------------------------------------------------------------------------------

    async def put_tag(
        self,
        repository: str,
        tag: str,
        digest: Digest,
        manifest: bytes | None,
        content_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> TagRecord:
        """Point the tag to the manifest, once everything that it needs is safe.

        On return the tag is on this host's disk and on those of the neighbours that answer in time.
        Raises what `Resolver.resolve` raises; the tag is then as it was. Cancelling it ends the
        check; a write that has begun goes on to its end.
        """
        name = f"{repository}:{tag}"
        candidate = Candidate(name, digest, manifest, content_type, index_children)
        await self._resolve(candidate, deadline)
        write = asyncio.create_task(self._write(repository, tag, digest), name=f"tag {name}")
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def _write(self, repository: str, tag: str, digest: Digest) -> TagRecord:
        record = TagRecord(repository, tag, str(digest), self._clock.tick(self._wall_ms()))
        await self._store.apply([record])
        log.info("tag", repository=repository, tag=tag, digest=record.digest)
        await self._neighbours.spread(record)
        return record

    async def check(
        self,
        repository: str,
        digest: Digest,
        manifest: bytes | None,
        content_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> int:
        """The number of the manifest's dependencies, which are all safe; raises as `put_tag`."""
        name = f"{repository}@{digest}"
        candidate = Candidate(name, digest, manifest, content_type, index_children)
        return await self._resolve(candidate, deadline)

    async def _resolve(self, candidate: Candidate, deadline: Deadline) -> int:
        try:
            return len(await self._resolver.resolve(candidate, deadline=deadline))
        except ApiError as error:
            log.warning(
                "manifest refused",
                tag=candidate.name,
                digest=str(candidate.digest),
                code=error.code,
                error=error.message,
            )
            raise

    async def get_tag(self, repository: str, tag: str) -> TagRecord:
        """The newest write of the tag; raises `ManifestUnknown`."""
        record = await self._store.get(repository, tag)
        if record is None:
            raise ManifestUnknown(f"there is no tag {tag} in the repository {repository}")
        return record

    async def tags(self, repository: str, last: str, count: int | None) -> Page:
        """A page of the repository's tags, in ASCII order; raises `NameUnknown`."""
        page = await self._store.tags(repository, last, _page_size(count))
        if page is None:
            raise NameUnknown(f"there is no tag in the repository {repository}")
        return page

    async def repositories(self, last: str, count: int | None) -> Page:
        """A page of the repositories that have a tag, in ASCII order."""
        return await self._store.repositories(last, _page_size(count))

    # -- neighbours ---------------------------------------------------------------------------

    async def changes(self, after: int, limit: int) -> Changes:
        """Records in the order in which this build-index took them, after a sequence number."""
        return await self._store.changes(after, limit)

    async def accept(self, records: Sequence[TagRecord]) -> None:
        """Keep a neighbour's records that are newer than the own ones, durably.

        Raises `BadRequest` for a malformed record (nothing is kept), `Unavailable` for a full disk.
        """
        if not records:
            return
        for record in records:
            record.check()
        for record in records:
            self._clock.observe(record.version)
        ahead = max(record.version.wall_ms for record in records) - self._wall_ms()
        if ahead > CLOCK_SKEW_MS:
            log.warning("the clock of a neighbour is ahead: is time synchronised?", ahead_ms=ahead)
        kept = await self._store.apply(records)
        if any(kept):
            log.debug("records of neighbours", given=len(records), newer=sum(kept))

    # -- readiness ----------------------------------------------------------------------------

    async def readiness(self) -> list[str]:
        """What keeps the build-index from taking pushes; nothing when all is well."""
        if time.monotonic() < self._ready_until:
            return []
        disk, origins = await asyncio.gather(self._disk_missing(), self._origins_missing())
        behind = [f"catching up with the neighbour {host}" for host in self._neighbours.behind()]
        missing = disk + origins + behind
        if not missing:
            self._ready_until = time.monotonic() + READY_FOR
        return missing

    async def _disk_missing(self) -> list[str]:
        try:
            await self._store.probe()
        except ApiError as error:
            return [error.message]
        return []


def _page_size(count: int | None) -> int:
    return MAX_PAGE if count is None else max(1, min(count, MAX_PAGE))
