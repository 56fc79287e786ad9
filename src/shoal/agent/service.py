# SPDX-License-Identifier: Apache-2.0
"""An agent's blobs: found on its disk or in the swarm, and shared with its peers.

They are content by digest alone; `shoal.agent.pulls` knows which repository may read what.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from time import monotonic

import structlog

from shoal.agent.body import AgentBlob
from shoal.agent.download import Download, Sources
from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, Unavailable
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.pieces import PieceFile
from shoal.tracker.messages import AnnouncedBlob
from shoal.web.bodies import Blob
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound

_ANNOUNCE_TIMEOUT = 10.0
_LEAVE_TIMEOUT = 1.0
_DEFAULT_INTERVAL = 30.0

log = structlog.get_logger(__name__)


class AgentService:
    """Blobs for this host's clients, fed by the swarm.

    Also the swarm's view of this host's disk (`shoal.swarm.node.BlobProvider`).
    """

    def __init__(self) -> None:
        self._sources: Sources
        self._downloads: dict[Digest, Download] = {}
        self._tasks: dict[Digest, asyncio.Task[None]] = {}
        self._cached: set[Digest] = set()
        self._fresh: set[Digest] = set()
        """Cached since the trackers were last told."""
        self._news = asyncio.Event()

    def connect(self, sources: Sources) -> None:
        """Give it the swarm, which in turn needs this service as its provider."""
        self._sources = sources

    # -- for this host's clients

    async def size(self, digest: Digest, deadline: Deadline) -> int | None:
        """The size of a blob, None: no origin has it. Nothing is downloaded."""
        swarm = self._node_blob(digest)
        if swarm is not None:
            return swarm.metainfo.size
        size = await asyncio.to_thread(self._sources.library.size, digest)
        if size is None:
            size = await self._sources.origins.stat(digest, deadline=deadline)
        return size

    async def fetch(self, digest: Digest, namespace: str) -> None:
        """Begin to download the blob, unless that was begun before or it is here."""
        await self._find(digest, namespace)

    async def open_blob(self, digest: Digest, namespace: str, deadline: Deadline) -> Blob:
        """A blob, from this host's disk or while it arrives; raises `BlobUnknown`."""
        found = await self._find(digest, namespace)
        if isinstance(found, Download):
            return self._body(digest, await self._opened(found, deadline))
        if found.pieces.recheck_if_touched():
            log.warning("a cached file was changed; checking it again", digest=str(digest))
        return self._body(digest, found.pieces)

    async def _find(self, digest: Digest, namespace: str) -> BlobSwarm | Download:
        """The blob on this host's disk, or its download, which begins if need be."""
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
        return download or self._download(digest, namespace)

    def _body(self, digest: Digest, pieces: PieceFile) -> AgentBlob:
        return AgentBlob(pieces, lambda: self._leeching(digest))

    def _leeching(self, digest: Digest) -> BlobSwarm | None:
        download = self._downloads.get(digest)
        return None if download is None else download.swarm

    def _node_blob(self, digest: Digest) -> BlobSwarm | None:
        return self._sources.node.blobs.get(digest)

    # -- downloads

    async def _opened(self, download: Download, deadline: Deadline) -> PieceFile:
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.shield(download.pieces)
        except TimeoutError as error:
            raise Unavailable(
                f"neither trackers nor origins have said in time where {download.digest} is"
            ) from error
        except NotFound as error:
            raise BlobUnknown(
                f"no origin has blob {download.digest}", detail={"digest": str(download.digest)}
            ) from error

    def _download(
        self, digest: Digest, namespace: str, damaged: PieceFile | None = None
    ) -> Download:
        download = Download(digest, namespace, self._sources, damaged)
        self._downloads[digest] = download
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
            return
        pieces = swarm.pieces
        pieces.on_damaged = lambda _: self._mend(pieces)
        self._cached.add(digest)
        self._fresh.add(digest)
        self._news.set()

    # -- sharing: this host as its peers see it

    async def open(self, digest: Digest) -> PieceFile | None:
        """A cached blob that a peer asks for."""
        if digest in self._downloads:
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
        self._cached.discard(digest)
        pieces.on_damaged = None
        self._download(digest, "", pieces)

    # -- trackers

    async def announce(self) -> None:
        """Tell the trackers again and again what is here, until cancelled."""
        self._cached.update(await asyncio.to_thread(self._sources.library.digests))
        interval, told = _DEFAULT_INTERVAL, -math.inf
        while True:
            if monotonic() - told >= interval:
                told = monotonic()
                blobs, complete = self._cached | set(self._downloads), self._cached
            else:
                blobs, complete = self._fresh, self._fresh
            self._news.clear()
            self._fresh = set()
            interval = await self._tell_trackers(blobs, complete) or interval
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, told + interval - monotonic())):
                    await self._news.wait()

    async def _tell_trackers(self, blobs: set[Digest], complete: set[Digest]) -> float:
        """Announce blobs; the seconds after which to do so again, 0 when no tracker answered."""
        if not blobs:
            return 0.0
        sources = self._sources
        announced = [AnnouncedBlob(str(digest), digest in complete) for digest in blobs]
        try:
            answer = await sources.tracker.announce(
                sources.node.peer, announced, deadline=Deadline.after(_ANNOUNCE_TIMEOUT)
            )
        except CallFailed as error:
            log.warning("no tracker could be told what is here", blobs=len(blobs), error=str(error))
            return 0.0
        for text, peers in answer.peers.items():
            swarm = self._leeching(Digest.parse(text))
            if swarm is not None:
                swarm.add_peers(peers)
        return answer.interval_s

    async def delete(self, digest: Digest) -> bool:
        """Remove a blob from this host; whether it was here. If it is being fetched, that ends."""
        task = self._tasks.get(digest)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._cached.discard(digest)
        self._sources.node.remove(digest)
        return await asyncio.to_thread(self._sources.library.delete, digest)

    async def stop(self) -> None:
        """End the downloads, keeping what came, and take leave of the trackers."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(CallFailed):
            await self._sources.tracker.leave(
                self._sources.node.peer.id, deadline=Deadline.after(_LEAVE_TIMEOUT)
            )
