# SPDX-License-Identifier: Apache-2.0
"""What an origin does by itself so that nothing is lost: repair, scrub, watching over its disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Protocol

import structlog

from shoal.model.digest import Digest
from shoal.origin.bandwidth import Bandwidth
from shoal.origin.client import Change, OriginCluster, RemoteBlob
from shoal.origin.config import OriginConfig
from shoal.origin.disk_watch import DiskWatch
from shoal.origin.local import LocalBlobs
from shoal.origin.refetch import Refetcher
from shoal.origin.repair import AskWanted, Repairer
from shoal.origin.repair_peers import RepairPeers
from shoal.origin.repair_plan import HOLD
from shoal.origin.scrub import Scrubber
from shoal.origin.service import OriginService
from shoal.origin.status import OriginStatus, StatusReport
from shoal.store.blobs import BlobStore
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound

FIND_TIMEOUT = 30.0
"""Seconds for finding who has a blob; a backend may be asked in that."""

_UNTOLD = "it has not told the others yet that they should look what it lacks"

_SELF_CHECK = 0.2
"""Seconds between two looks whether this origin answers by now."""

log = structlog.get_logger()


class Debts(Protocol):
    """What is still to be written to backends (`shoal.origin.writeback.WriteBack`)."""

    def is_pinned(self, digest: Digest) -> bool: ...
    def owing(self) -> int: ...


class Upkeep:
    """The parts, put together; they run from `start` to `stop`."""

    def __init__(
        self,
        config: OriginConfig,
        cluster: OriginCluster,
        store: BlobStore,
        local: LocalBlobs,
        service: OriginService,
        *,
        forget: Callable[[Digest], None],
        wanted: AskWanted | None,
        debts: Debts | None,
        repositories: Callable[[Digest], Iterable[str]],
    ) -> None:
        """`forget` takes a blob that is gone out of the peer endpoint.

        `wanted` asks the build-indexes; `repositories` are those whose backend has a blob (blocks).
        """
        self._name = config.member
        self._config = config
        self._cluster = cluster
        self._local = local
        self._service = service
        self._forget = forget
        self._repositories = repositories
        bandwidth = Bandwidth(config.repair.bandwidth)
        self._peers = RepairPeers(
            self._name,
            cluster,
            cluster.ring,
            local,
            bandwidth,
            concurrency=config.repair.concurrency,
            terms=service.backend_terms,
        )
        self._repairer = Repairer(
            self._name,
            local,
            self._peers,
            config.repair,
            forget=forget,
            pinned=(lambda _: False) if debts is None else debts.is_pinned,
            wanted=wanted,
            young=config.gc.grace,
        )
        self._refetcher = Refetcher(local, self._find, self._store, self._owns, bandwidth)
        self._scrubber = Scrubber(local, config.data_dir / "scrub.json", config.scrub)
        self._disks = DiskWatch(
            store.folders(), store.make_again, self._disk_lost, failures=store.volumes.failures
        )
        self._report = StatusReport(
            self._name,
            lambda: cluster.members,
            repairer=self._repairer,
            refetcher=self._refetcher,
            scrubber=self._scrubber,
            bandwidth=bandwidth,
            volumes=store.volumes.paths,
            pending=(lambda: 0) if debts is None else debts.owing,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin. Call it when the members are known."""
        loop = asyncio.get_running_loop()

        def damaged(digest: Digest) -> None:
            loop.call_soon_threadsafe(self._damaged, digest)

        self._local.on_damage(damaged)
        self._cluster.watch(self._changed)
        self._service.watch_copies(self._repairer.arrived)
        repair = self._config.repair
        self._run(self._disks.run(repair.disk_check), "watch over the disk")
        self._run(self._refetcher.run(repair.interval), "refetching")
        self._run(self._repairer.run(), "repair")
        self._run(self._say_that_this_host_is_back(), "call for repair")
        if self._scrubber.enabled:
            self._run(self._scrubber.run(), "scrub")

    async def stop(self) -> None:
        """End what is under way; it goes on at the next start."""
        self._local.on_damage(lambda _: None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._scrubber.close()

    def _run(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("upkeep ended", task=task.get_name(), exc_info=error)

    # -- what others ask ------------------------------------------------------------------------

    async def status(self) -> OriginStatus:
        """How this origin is."""
        return await self._report.status()

    def look(self, about: str | None) -> None:
        """Look now for copies that are missing, on one member or on all."""
        if about is None:
            self._repairer.look(why="it was asked to look at all its copies")
        else:
            self._repairer.look({about}, why=f"{about} was started anew, or lost a disk")

    async def hold(
        self, digests: Iterable[Digest], *, kept: bool, unbacked: bool
    ) -> dict[Digest, int]:
        """Sizes of those that are here and stay, for a member that gives up its own copies."""
        return await in_thread(self._local.hold, digests, HOLD, kept=kept, unbacked=unbacked)

    # -- what happens ---------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        if change.joined or change.left:
            self._repairer.ring_changed()
        elif change.back:
            who = ", ".join(sorted(change.back))
            self._repairer.look(change.back, why=f"{who} did not answer for a while")

    def _damaged(self, digest: Digest) -> None:
        self._forget(digest)  # the peer endpoint has the file open, whatever its name is now
        self._refetcher.damaged(digest)

    def _disk_lost(self) -> None:
        self._run(self._call_for_repair(), "call for repair")
        self._repairer.look(why="a disk was lost")

    async def _call_for_repair(self) -> None:
        with self._repairer.doubts.lasting(_UNTOLD):
            await self._peers.call_for_repair()

    async def _say_that_this_host_is_back(self) -> None:
        """The others may not have noticed that it was away, nor can they know what it lost."""
        with self._repairer.doubts.lasting(_UNTOLD):
            await self._until_it_answers()
            await self._peers.call_for_repair()

    async def _until_it_answers(self) -> None:
        while True:
            with suppress(CallFailed):
                await self._cluster.ring.call(
                    self._name, "GET", "/health", Deadline.after(_SELF_CHECK * 10)
                )
                return
            await asyncio.sleep(_SELF_CHECK)

    # -- fetching anew --------------------------------------------------------------------------

    def _owns(self, digest: Digest) -> bool:
        return self._name in self._cluster.owners(digest)

    async def _find(self, digest: Digest) -> RemoteBlob:
        late = Deadline.after(FIND_TIMEOUT)
        try:
            return await self._cluster.open(digest, deadline=late, besides=self._name)
        except NotFound:
            for repository in await in_thread(lambda: list(self._repositories(digest))):
                with suppress(NotFound):
                    return await self._cluster.open(digest, deadline=late, namespace=repository)
            raise

    async def _store(
        self, digest: Digest, source: AsyncIterator[bytes], size: int, used: float | None
    ) -> None:
        kept = await in_thread(self._local.is_kept, digest)
        await self._service.store(digest, source, size, kept=kept, used=used)
