# SPDX-License-Identifier: Apache-2.0
"""What the build-index does. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from shoal.buildindex import writes
from shoal.buildindex.adoption import entry_of
from shoal.buildindex.collector import Collector
from shoal.buildindex.elsewhere import Elsewhere
from shoal.buildindex.garbage import GcReport
from shoal.buildindex.listing import Listings
from shoal.buildindex.lookups import Question
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.publishing import Publisher
from shoal.buildindex.records import Changes, Page, Record, ReferrersPage
from shoal.buildindex.resolver import Candidate, Resolved, Resolver, with_time_to_answer
from shoal.buildindex.store import Store
from shoal.buildindex.view import View
from shoal.model.digest import Digest
from shoal.model.errors import (
    ApiError,
    BlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameUnknown,
    SourceFailed,
    Unavailable,
)
from shoal.model.manifest import (
    FoundManifest,
    IndexChildren,
    InvalidManifest,
    Manifest,
    parse_manifest,
)
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

MAX_PAGE = 10_000
"""Names in one answer."""

MAX_REFERRERS = 1_000
"""Referrers in one answer."""

MAX_LOST = 3
"""How often a push looks again when what it needs is deleted between the look and the write."""

READY_FOR = 1.0
"""Seconds for which having been ready is believed, so that probes rarely write to the disk."""

log = structlog.get_logger()


class Looked(NamedTuple):
    """What the records say, in the order of the questions."""

    manifests: list[FoundManifest | None]
    blobs: list[bool]
    open: list[Question]
    """Questions that a backend or an upstream must be asked before the answer counts."""


class BuildIndex:
    """What belongs to which repository: tags, manifests and blobs, and who refers to whom."""

    def __init__(
        self,
        store: Store,
        neighbours: Neighbours,
        publisher: Publisher,
        resolver: Resolver,
        collector: Collector,
        *,
        elsewhere: Elsewhere,
        listings: Listings,
        gc_grace: float,
        origins_missing: Callable[[], Awaitable[list[str]]],
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`origins_missing` says what keeps the origins from taking a push, if anything does.

        `gc_grace`, in seconds: what a push relies on is renewed when it is older than half of it.
        """
        self._store = store
        self._neighbours = neighbours
        self._publisher = publisher
        self._resolver = resolver
        self._collector = collector
        self._elsewhere = elsewhere
        self._listings = listings
        self._renew_after_ms = round(gc_grace * 1000 / 2)
        self._origins_missing = origins_missing
        self._wall_ms = wall_ms
        self._ready_until = 0.0

    async def start(self, catch_up_timeout: float) -> None:
        """Take what the neighbours have, and follow them; begin to collect garbage.

        Nothing may be served before this returns: what is here would be older than what was
        acknowledged.
        """
        await self._neighbours.catch_up(catch_up_timeout)
        self._neighbours.follow()
        self._collector.start()

    async def stop(self) -> None:
        """Finish what is under way and close the database."""
        await self._collector.stop()
        await self._elsewhere.stop()
        await self._publisher.stop()
        await self._neighbours.stop()
        await self._store.close()

    # -- pushes -------------------------------------------------------------------------------

    async def put_manifest(
        self,
        repository: str,
        digest: Digest,
        body: bytes | None,
        content_type: str | None,
        *,
        tags: Sequence[str],
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> None:
        """Make a manifest part of the repository, and point the tags to it.

        All that it needs must be part of the repository, and safe on the origins. On return it is
        on this host's disk and on those of the neighbours that answer in time. Raises what
        `Resolver.resolve` raises; all is then as it was. Cancelling it ends the check; a write that
        has begun goes on to its end.
        """
        self._elsewhere.refuse_writes(repository)
        candidate = Candidate(
            name=f"{repository}:{tags[0]}" if tags else f"{repository}@{digest}",
            repository=repository,
            digest=digest,
            body=body,
            content_type=content_type,
            index_children=index_children,
        )
        lost = ""
        for _ in range(MAX_LOST):
            resolved = await self._resolve(candidate, deadline)
            root = await _root(candidate, resolved)
            try:
                await self._publisher.write(
                    partial(
                        writes.put_manifest,
                        repository=repository,
                        digest=digest,
                        entry=entry_of(root, resolved.size),
                        tags=tags,
                        needs_blobs=resolved.blobs,
                        needs_manifests=resolved.manifests.keys(),
                        renew_before=self._renew_before(),
                    )
                )
            except writes.Lost as error:
                lost = str(error)
                log.info("deleted while it was pushed", tag=candidate.name, digests=lost)
            else:
                log.info("manifest", repository=repository, digest=str(digest), tags=list(tags))
                return
        raise Unavailable(
            f"the manifest {digest} was not taken: {lost} left the repository {repository} each of "
            f"the {MAX_LOST} times that it was checked; push again"
        )

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
    ) -> Record:
        """Point the tag to the manifest, once everything that it needs is safe on the origins.

        For callers that are trusted: all of it becomes part of the repository. Otherwise as
        `put_manifest`.
        """
        self._elsewhere.refuse_writes(repository)
        candidate = Candidate(
            name=f"{repository}:{tag}",
            repository=repository,
            digest=digest,
            body=manifest,
            content_type=content_type,
            index_children=index_children,
            adopt=True,
        )
        resolved = await self._resolve(candidate, deadline)
        manifests = {
            child: entry_of(read.manifest, read.size) for child, read in resolved.manifests.items()
        }
        if resolved.root is not None:
            manifests[digest] = entry_of(resolved.root, resolved.size)
        record = await self._publisher.write(
            partial(
                writes.adopt,
                repository=repository,
                tag=tag,
                digest=digest,
                manifests=manifests,
                blobs=resolved.blobs,
                renew_before=self._renew_before(),
            )
        )
        log.info("tag", repository=repository, tag=tag, digest=str(digest))
        return record

    async def _resolve(self, candidate: Candidate, deadline: Deadline) -> Resolved:
        try:
            return await self._resolver.resolve(candidate, deadline=deadline)
        except ApiError as error:
            log.warning(
                "manifest refused",
                tag=candidate.name,
                digest=str(candidate.digest),
                code=error.code,
                error=error.message,
            )
            raise

    async def link(self, repository: str, digest: Digest) -> None:
        """Make a blob part of the repository; the caller knows that the origins have it."""
        self._elsewhere.refuse_writes(repository)
        await self._publisher.write(
            partial(
                writes.link,
                repository=repository,
                digest=digest,
                renew_before=self._renew_before(),
            )
        )

    async def mount(self, repository: str, digest: Digest, source: str | None) -> None:
        """Make a blob part of the repository if the source (None: any repository) has it.

        Raises `BlobUnknown`.
        """
        self._elsewhere.refuse_writes(repository)
        operation = partial(
            writes.mount,
            repository=repository,
            digest=digest,
            source=source,
            renew_before=self._renew_before(),
        )
        if not await self._publisher.write_or_ask(operation):
            where = "no repository" if source is None else f"the repository {source} does not"
            raise BlobUnknown(f"{where} {'has' if source is None else 'have'} the blob {digest}")

    # -- deletions ----------------------------------------------------------------------------

    async def delete_tag(self, repository: str, tag: str) -> None:
        """Delete a tag; raises `ManifestUnknown`."""
        self._elsewhere.refuse_writes(repository)
        if not await self._publisher.write_or_ask(
            partial(writes.delete_tag, repository=repository, tag=tag)
        ):
            raise _no_tag(repository, tag)
        log.info("tag deleted", repository=repository, tag=tag)

    async def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Delete a manifest and all tags that point to it; raises `ManifestUnknown`."""
        self._elsewhere.refuse_writes(repository)
        operation = partial(writes.delete_manifest, repository=repository, digest=digest)
        if not await self._publisher.write_or_ask(operation):
            raise ManifestUnknown(f"there is no manifest {digest} in the repository {repository}")
        log.info("manifest deleted", repository=repository, digest=str(digest))

    async def delete_blob(self, repository: str, digest: Digest) -> None:
        """Take a blob out of the repository.

        Raises `BlobUnknown`, and `Unsupported` while a manifest of the repository references it.
        """
        self._elsewhere.refuse_writes(repository)
        operation = partial(writes.delete_blob, repository=repository, digest=digest)
        if not await self._publisher.write_or_ask(operation):
            raise BlobUnknown(f"there is no blob {digest} in the repository {repository}")
        log.info("blob deleted", repository=repository, digest=str(digest))

    async def collect(self, *, dry_run: bool, grace: float | None) -> GcReport:
        """As `Collector.collect`."""
        return await self._collector.collect(dry_run=dry_run, grace=grace)

    # -- reads --------------------------------------------------------------------------------

    async def get_tag(self, repository: str, tag: str, deadline: Deadline) -> str:
        """The digest that the tag points to; raises `ManifestUnknown`."""
        looked = await self.lookup([(repository, tag)], [], rely=False, deadline=deadline)
        found = looked.manifests[0]
        if found is None:
            raise _no_tag(repository, tag)
        return str(found.digest)

    async def tags(self, repository: str, last: str, count: int | None) -> Page:
        """A page of the repository's tags, in ASCII order; raises `NameUnknown`."""
        page = await self._listings.tags(repository, last, _page_size(count, MAX_PAGE))
        if page is None:
            raise NameUnknown(f"there is no tag and no manifest in the repository {repository}")
        return page

    async def repositories(self, last: str, count: int | None) -> Page:
        """A page of the repositories that have a tag or a manifest, in ASCII order."""
        return await self._listings.repositories(last, _page_size(count, MAX_PAGE))

    async def referrers(
        self,
        repository: str,
        subject: Digest,
        artifact_type: str | None,
        last: str,
        count: int | None,
    ) -> ReferrersPage:
        """A page of the manifests that name the subject as theirs, sorted by digest.

        The subject itself may be missing. Those that clients of older registries list under the
        fallback tag of the subject are among them.
        """
        size = _page_size(count, MAX_REFERRERS)
        return await self._store.read(
            lambda view: view.referrers(repository, subject, artifact_type or None, last, size)
        )

    async def lookup(
        self,
        manifests: Sequence[tuple[str, str]],
        blobs: Sequence[tuple[str, str]],
        *,
        rely: bool,
        deadline: Deadline | None = None,
    ) -> Looked:
        """What tags and digests of repositories stand for, and whether repositories have blobs.

        With a deadline, backends and upstreams are asked where the records do not say it; without
        one, the questions for which they would be are `Looked.open`. With `rely`, blobs that are
        found stay for at least half of the grace time of garbage collection. Raises `SourceFailed`
        when a backend or an upstream cannot be asked, and `Denied` when an upstream refuses us.
        """
        looked = await self._look(manifests, blobs, rely=rely)
        if deadline is None or not looked.open:
            return looked
        try:
            await self._elsewhere.bring(looked.open, with_time_to_answer(deadline), rely=rely)
        except CallFailed as error:
            wait = max(1, math.ceil(error.retry_after or 1))
            raise SourceFailed(str(error), retry_after=wait) from error
        return (await self._look(manifests, blobs, rely=rely))._replace(open=[])

    async def _look(
        self,
        manifests: Sequence[tuple[str, str]],
        blobs: Sequence[tuple[str, str]],
        *,
        rely: bool,
    ) -> Looked:
        def look(view: View) -> tuple[list[FoundManifest | None], list[int | None]]:
            return (
                [view.find_manifest(*pair) for pair in manifests],
                [view.linked_at(*pair) for pair in blobs],
            )

        found, linked = await self._store.read(look)
        has = [written is not None for written in linked]
        if rely:
            await self._rely(blobs, linked, has)
        asked = [
            (Question("manifest", *pair), known is not None)
            for pair, known in zip(manifests, found, strict=True)
        ]
        asked += [(Question("blob", *pair), known) for pair, known in zip(blobs, has, strict=True)]
        return Looked(found, has, await self._elsewhere.open_questions(asked))

    async def _rely(
        self, blobs: Sequence[tuple[str, str]], linked: Sequence[int | None], has: list[bool]
    ) -> None:
        """Renew the links that are about to be old enough for garbage collection."""
        renew_before = self._renew_before()
        aged = [
            number
            for number, written in enumerate(linked)
            # What was found in a backend (0) is not collected.
            if written is not None and 0 < written < renew_before
        ]
        if aged:
            pairs = [blobs[number] for number in aged]
            still = await self._publisher.write(
                partial(writes.rely, pairs=pairs, renew_before=renew_before)
            )
            for number, there in zip(aged, still, strict=True):
                has[number] = there

    async def wanted(self, digests: Collection[str]) -> list[str]:
        """Those of the digests that any repository needs."""
        return await self._store.read(lambda view: view.wanted(digests))

    # -- neighbours ---------------------------------------------------------------------------

    async def changes(self, after: int, limit: int) -> Changes:
        """Records in the order in which this build-index took them, after a sequence number."""
        return await self._store.read(lambda view: view.changes(after, limit))

    async def accept(self, records: Sequence[Record]) -> None:
        """As `Neighbours.accept`."""
        await self._neighbours.accept(records)

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

    # -- writing ------------------------------------------------------------------------------

    def _renew_before(self) -> int:
        return self._wall_ms() - self._renew_after_ms


async def _root(candidate: Candidate, resolved: Resolved) -> Manifest:
    """The manifest that was pushed; raises `ManifestInvalid`.

    Nobody looked whether it is one when the tag's type is ``default``.
    """
    if resolved.root is not None:
        return resolved.root
    if candidate.body is None:
        raise ManifestInvalid(
            f"{candidate.name} is of the tag type default, so that {candidate.digest} is not read "
            "from the origins: send the manifest itself, or only tag it"
        )
    try:
        return await in_thread(parse_manifest, candidate.body, candidate.content_type)
    except InvalidManifest as error:
        raise ManifestInvalid(f"{candidate.digest}: {error}") from error


def _no_tag(repository: str, tag: str) -> ManifestUnknown:
    return ManifestUnknown(f"there is no tag {tag} in the repository {repository}")


def _page_size(count: int | None, most: int) -> int:
    return most if count is None else max(1, min(count, most))
