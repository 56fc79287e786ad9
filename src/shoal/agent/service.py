# SPDX-License-Identifier: Apache-2.0
"""An agent's blobs: found on its disk or in the swarm, and shared with its peers.

They are content by digest alone; `shoal.agent.pulls` knows which repository may read what.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import structlog
from prometheus_client import Counter

from shoal.agent.body import AgentBlob
from shoal.agent.download import Download, Sources
from shoal.agent.membership import Said
from shoal.agent.timeline import Journal
from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, InsufficientStorage, Unavailable
from shoal.store.eviction import CachedBlob
from shoal.store.full import is_full
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.pieces import PieceFile
from shoal.web.bodies import Blob
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound

log = structlog.get_logger(__name__)

_PASSED = Counter(
    "shoal_agent_passed_through", "Blobs given to clients straight from an origin, for lack of room"
)


class AgentService:
    """Blobs for this host's clients, fed by the swarm.

    Also the swarm's view of this host's disk (`shoal.swarm.node.BlobProvider`).
    """

    def __init__(self, journal: Journal) -> None:
        """`journal` is told of each download and of who reads."""
        self._journal = journal
        self._sources: Sources
        self._downloads: dict[Digest, Download] = {}
        self._tasks: dict[Digest, asyncio.Task[None]] = {}
        self._evicting: dict[Digest, asyncio.Task[bool]] = {}

    def connect(self, sources: Sources) -> None:
        """Give it the swarm, which in turn needs this service as its provider."""
        self._sources = sources

    # -- for this host's clients

    async def size(self, digest: Digest, deadline: Deadline, namespace: str = "") -> int | None:
        """The size of a blob, None: neither an origin nor the namespace's backend has it.

        Nothing is downloaded.
        """
        swarm = self._node_blob(digest)
        if swarm is not None:
            return swarm.metainfo.size
        size = await asyncio.to_thread(self._sources.library.size, digest)
        if size is None:
            size = await self._sources.origins.stat(digest, deadline=deadline, namespace=namespace)
        return size

    async def fetch(self, digest: Digest, namespace: str, said: Said | None = None) -> None:
        """Begin to download the blob, unless that was begun before or it is here.

        `said`: what a manifest says of it.
        """
        await self._find(digest, namespace, said)

    async def keep_small(self, digest: Digest, data: bytes) -> None:
        """Cache what came in one request, and let other hosts have it; raises OSError."""
        await asyncio.to_thread(self._sources.library.keep_small, digest, data)
        self._sources.announcer.has(digest, small=True)

    async def open_blob(self, digest: Digest, namespace: str, deadline: Deadline) -> Blob:
        """A blob, from this host's disk or while it arrives; raises `BlobUnknown`.

        One that finds no room on the disk passes through, from an origin to the client.
        """
        found = await self._find(digest, namespace)
        if isinstance(found, Download):
            try:
                return await self._opened(found, deadline)
            except (InsufficientStorage, OSError) as error:
                if isinstance(error, OSError) and not is_full(error):
                    raise
                log.warning("a blob passes through", digest=str(digest), why=str(error))
                _PASSED.inc()
                return await self._pass_through(digest, namespace, deadline)
        if found.pieces.recheck_if_touched():
            log.warning("a cached file was changed; checking it again", digest=str(digest))
        return self._body(digest, found.pieces)

    async def _pass_through(self, digest: Digest, namespace: str, deadline: Deadline) -> Blob:
        try:
            return await self._sources.origins.open(digest, deadline=deadline, namespace=namespace)
        except NotFound as error:
            raise BlobUnknown(error.detail, detail={"digest": str(digest)}) from error

    async def _find(
        self, digest: Digest, namespace: str, said: Said | None = None
    ) -> BlobSwarm | Download:
        """The blob on this host's disk, or its download, which begins if need be."""
        if (going := self._evicting.get(digest)) is not None:
            await asyncio.wait([going])
        download = self._downloads.get(digest)
        if download is not None and download.finishing:
            await asyncio.wait([self._tasks[digest]])
        swarm = self._node_blob(digest)
        if swarm is None and digest not in self._downloads:
            cached = await asyncio.to_thread(self._sources.library.complete, digest)
            if cached is not None:
                swarm = self._share(cached)
        download = self._downloads.get(digest)
        if download is None and swarm is not None:
            swarm.last_used = swarm.node.now()
            return swarm
        return download or self._download(digest, namespace, said=said)

    def _body(self, digest: Digest, pieces: PieceFile) -> AgentBlob:
        reading = self._journal.begin_reading(digest, self._sources.node.now())
        return AgentBlob(pieces, reading)

    def _node_blob(self, digest: Digest) -> BlobSwarm | None:
        return self._sources.node.blobs.get(digest)

    # -- downloads

    async def _opened(self, download: Download, deadline: Deadline) -> AgentBlob:
        try:
            async with asyncio.timeout(deadline.remaining()):
                pieces = await asyncio.shield(download.pieces)
            return self._body(download.digest, pieces)
        except TimeoutError as error:
            raise Unavailable(
                f"neither trackers nor origins have said in time where {download.digest} is"
            ) from error
        except NotFound as error:
            raise BlobUnknown(
                f"no origin has blob {download.digest}", detail={"digest": str(download.digest)}
            ) from error

    def _download(
        self,
        digest: Digest,
        namespace: str,
        damaged: PieceFile | None = None,
        said: Said | None = None,
    ) -> Download:
        timeline = self._journal.begin_download(digest, self._sources.node.now())
        download = Download(digest, namespace, self._sources, timeline, damaged=damaged, said=said)
        self._downloads[digest] = download
        self._sources.announcer.fetches(digest)
        task = asyncio.get_running_loop().create_task(self._run(download))
        self._tasks[digest] = task
        return download

    async def _run(self, download: Download) -> None:
        digest = download.digest
        try:
            await download.run()
        finally:
            del self._downloads[digest]
            del self._tasks[digest]
        swarm = self._node_blob(digest)
        if swarm is None or not swarm.pieces.all_verified:
            self._sources.announcer.has_not(digest)
            return
        pieces = swarm.pieces
        pieces.on_damaged = lambda _: self._mend(pieces)
        self._sources.announcer.has(digest, small=pieces.metainfo.count <= 1)

    # -- sharing: this host as its peers see it

    async def open(self, digest: Digest) -> PieceFile | None:
        """A cached blob that a peer asks for."""
        if digest in self._downloads or digest in self._evicting:
            return None
        pieces = await asyncio.to_thread(self._sources.library.complete, digest)
        if pieces is not None:
            pieces.on_damaged = lambda _: self._mend(pieces)
        return pieces

    def damaged(self, digest: Digest, index: int) -> None:
        """A peer asked for a piece that is not right; `_mend` is at work already."""
        log.warning("a cached piece was damaged", digest=str(digest), piece=index)

    def _share(self, pieces: PieceFile) -> BlobSwarm:
        swarm = self._sources.node.add(pieces)
        swarm.pieces.on_damaged = lambda _: self._mend(swarm.pieces)
        return swarm

    def _mend(self, pieces: PieceFile) -> None:
        """A cached blob is damaged: fetch what is wrong again, while those who read it wait."""
        digest = pieces.digest
        swarm = self._node_blob(digest)
        if swarm is None or swarm.pieces is not pieces:
            # A slow reader's file, which the node no longer shares: the next reader has it mended.
            pieces.fail(Unavailable(f"{digest} is damaged on this host's disk; ask again"))
            return
        if digest in self._downloads:
            return
        log.warning("a cached blob is damaged; fetching it again", digest=str(digest))
        pieces.on_damaged = None
        self._download(digest, "", pieces)

    # -- trackers

    async def announce(self) -> None:
        """Tell the trackers again and again what is here, until cancelled."""
        await self._sources.announcer.run(await asyncio.to_thread(self._sources.library.digests))

    async def delete(self, digest: Digest) -> bool:
        """Remove a blob from this host; whether it was here. If it is being fetched, that ends."""
        task = self._tasks.get(digest)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._sources.announcer.has_not(digest)
        self._sources.node.remove(digest)
        return await asyncio.to_thread(self._sources.library.delete, digest)

    # -- eviction (`shoal.store.room.Cache`)

    def blobs(self) -> Iterator[CachedBlob]:
        """What is on this host's disk. Blocks."""
        return self._sources.library.blobs(self._standing)

    def _standing(self, digest: Digest) -> tuple[bool, float]:
        """Whether a blob is being fetched, read or sent now, and when it was used last."""
        if digest in self._downloads:
            return True, 0.0
        swarm = self._node_blob(digest)
        if swarm is None:
            return False, 0.0
        idle = time.monotonic() - swarm.last_used
        return swarm.pieces.file.shared, time.time() - idle

    async def evict(self, digest: Digest) -> bool:
        """Remove a blob that nobody uses now; whether there was one. The trackers are told."""
        if digest in self._evicting or self._standing(digest)[0]:
            return False
        self._sources.announcer.has_not(digest)
        self._sources.node.remove(digest)
        removal = asyncio.to_thread(self._sources.library.delete, digest)
        going = asyncio.get_running_loop().create_task(removal)
        self._evicting[digest] = going
        going.add_done_callback(lambda _: self._evicting.pop(digest))
        return await asyncio.shield(going)

    async def stop(self) -> None:
        """End the downloads, keeping what came, and take leave of the trackers."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sources.announcer.stop()
