# SPDX-License-Identifier: Apache-2.0
"""One blob on its way to this host: located, fetched from the swarm, verified, cached."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import structlog
from prometheus_client import Counter

from shoal.agent.announcer import Announcer
from shoal.agent.library import Library
from shoal.agent.membership import Said
from shoal.agent.timeline import DownloadTimeline
from shoal.model.digest import Digest, Hasher
from shoal.model.errors import ApiError, StillFetching, Unavailable
from shoal.origin.client import OriginCluster
from shoal.store.room import Room
from shoal.swarm import bits as bitset
from shoal.swarm.blob import BlobSwarm, share_of
from shoal.swarm.metainfo import MIN_PIECE, Metainfo, metainfo_of
from shoal.swarm.node import SwarmNode
from shoal.swarm.order import Place
from shoal.swarm.peers import PeerInfo
from shoal.swarm.pieces import PieceFile
from shoal.tracker.client import TrackerClient
from shoal.tracker.messages import Joined
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Unreachable, retry_after

_ASK_TIMEOUT = 10.0
_LOOK = 0.5
"""Seconds between looks at how a download gets on."""

_ASK_AGAIN = 0.5
"""Seconds until what could not be asked is asked again."""

_FALLBACK_AFTER = 2.0
"""Seconds without a piece from the swarm after which the origins are asked over HTTP."""

_STARVED = 1.0
"""Seconds without a piece after which the tracker is asked for peers outside this host's zone."""

_ORIGINS_FIRST = 2.0
"""Seconds that the origins have for a blob of one piece before other hosts are asked for it."""

_SEEK = 1.0
"""Seconds after which a download asks for more peers the first time; then after twice as many."""

_MAX_SEEK = 32.0
_FEW = 0.5
"""Share of the connections that a blob may dial below which more peers are wanted."""

_HTTP_RUN = 8 * 1024 * 1024
_HASH_SLICE = 1024 * 1024

_HTTP_BYTES = Counter("shoal_origin_http_bytes", "Bytes of blobs fetched from origins over HTTP")
_DOWNLOADS = Counter("shoal_agent_downloads", "Downloads by how they ended", ["outcome"])

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where blobs come from, and where they go."""

    node: SwarmNode
    tracker: TrackerClient
    announcer: Announcer
    origins: OriginCluster
    library: Library
    room: Room
    hashing: Executor
    """One thread per download that hashes whole blobs behind the frontier."""

    stall_timeout: float


class Download:
    """A blob being fetched; any number of clients read it meanwhile."""

    def __init__(
        self,
        digest: Digest,
        namespace: str,
        sources: Sources,
        timeline: DownloadTimeline,
        *,
        damaged: PieceFile | None = None,
        said: Said | None = None,
    ) -> None:
        """`damaged`: the file of a cached blob of which pieces turned out wrong, to be mended.

        `said`: what a manifest says of the blob: where it is one piece, an origin is asked for it
        before anyone is asked where it is; of the layers of a manifest the first comes first.
        """
        self.digest = digest
        self.pieces: asyncio.Future[PieceFile] = asyncio.get_running_loop().create_future()
        """The file, as soon as the size of the blob is known; or why it cannot be had."""
        self.finishing = False
        """The blob is whole and right, and is being given its place in the cache."""
        self._namespace = namespace
        self._sources = sources
        self._timeline = timeline
        self._damaged = damaged
        self._said = said
        self._brought: bytes | None = None
        """The blob, when it is one piece and came before all else."""

    async def run(self) -> None:
        """Fetch the blob and cache it. Failures go to those who read, and into the log."""
        pieces: PieceFile | None = None
        try:
            joined = await self._bring() or await self._locate_fetched()
            file = self._sources.library.partial_path(self.digest)
            async with self._sources.room.reserve(self.digest, joined.metainfo.size, file):
                pieces = await self._open(joined.metainfo)
                self.pieces.set_result(pieces)
                await self._fetch(pieces, joined)
                pieces.settled()
                self.finishing = True
                await asyncio.to_thread(self._sources.library.finish, pieces)
        except asyncio.CancelledError:
            self._fail(pieces, Unavailable(f"{self.digest}: the download was ended"))
            self._timeline.end(self._now(), "ended by a deletion, or as the agent stopped")
            raise
        except (ApiError, CallFailed, OSError) as error:
            self._fail(pieces, error)
            self._timeline.end(self._now(), str(error))
            _DOWNLOADS.labels("failed").inc()
            log.warning("download failed", digest=str(self.digest), error=str(error))
        except Exception as error:
            self._fail(pieces, Unavailable(f"{self.digest}: the agent failed: {error!r}"))
            self._timeline.end(self._now(), repr(error))
            raise  # A fault of ours: those who read must not wait, and the log gets all of it.
        else:
            self._timeline.end(self._now())
            _DOWNLOADS.labels("complete").inc()
            log.info("download complete", digest=str(self.digest), size=joined.metainfo.size)

    def _now(self) -> float:
        return self._sources.node.now()

    def _fail(self, pieces: PieceFile | None, error: Exception) -> None:
        if not self.pieces.done():
            self.pieces.set_exception(error)
            self.pieces.exception()  # Nobody may be waiting any more.
        if pieces is None:
            pieces = self._damaged  # Its readers wait for what now nobody brings.
        if pieces is None:
            return
        pieces.fail(error)
        swarm = self._sources.node.blobs.get(self.digest)
        if swarm is not None and swarm.pieces is pieces:
            self._sources.node.remove(self.digest)
        else:
            pieces.close()

    async def _bring(self) -> Joined | None:
        """A blob of one piece by one request; None where that is not so, or not to be had."""
        said = self._said
        if said is None or said.size > MIN_PIECE or self._damaged is not None:
            return None
        try:
            data = await self._read(said.size, _ORIGINS_FIRST)
        except CallFailed as error:
            log.info("a small blob is looked for", digest=str(self.digest), error=str(error))
            return None
        metainfo = await asyncio.to_thread(metainfo_of, data)
        if metainfo.digest != str(self.digest):
            return None  # Or it has another algorithm, which the origins know to check.
        self._brought = data
        self._located(metainfo, [], "manifest")
        return Joined(metainfo, [], 0.0)

    async def _read(self, limit: int, within: float) -> bytes:
        return await self._sources.origins.read(
            self.digest,
            deadline=Deadline.after(within),
            limit=limit,
            namespace=self._namespace,
        )

    async def _locate_fetched(self) -> Joined:
        """As `_locate`, however long the origins take to fetch the blob from its backend.

        They say so each time, and bound it themselves: one that stalls is given up.
        """
        while True:
            try:
                return await self._locate(Deadline.after(_ASK_TIMEOUT))
            except CallFailed as error:
                if error.code != StillFetching.code:
                    raise
                log.info("the origins are still fetching", digest=str(self.digest))
                await asyncio.sleep(error.retry_after or 1.0)

    async def _locate(self, deadline: Deadline) -> Joined:
        """Metainfo and peers from the tracker, or from the origins when no tracker answers.

        Raises `BlobUnknown`, `CallFailed`.
        """
        sources = self._sources
        try:
            joined = await sources.tracker.join(
                self.digest, sources.node.peer, namespace=self._namespace, deadline=deadline
            )
        except CallFailed as error:
            if error.code == StillFetching.code:
                raise
            log.warning("no tracker answered", digest=str(self.digest), error=str(error))
            located = await sources.origins.metainfo(
                self.digest, deadline=Deadline.after(_ASK_TIMEOUT), namespace=self._namespace
            )
            if located is None:
                raise NotFound(
                    "GET", f"/blobs/{self.digest}", f"no origin has {self.digest}"
                ) from error
            self._located(located.metainfo, located.peers, "origins")
            return Joined(located.metainfo, located.peers, 0.0)
        self._located(joined.metainfo, joined.peers, "tracker")
        return joined

    def _located(self, metainfo: Metainfo, peers: list[PeerInfo], by: str) -> None:
        self._timeline.locate(self._now(), size=metainfo.size, by=by, peers=len(peers))

    async def _open(self, metainfo: Metainfo) -> PieceFile:
        damaged = self._damaged
        if damaged is None:
            return await asyncio.to_thread(self._sources.library.partial, metainfo)
        kept = await asyncio.to_thread(self._sources.library.demote, self.digest)
        if kept and damaged.metainfo == metainfo:
            return damaged
        # The file is gone, or the blob is cut into other pieces than when it was cached: who reads
        # the old file must start anew.
        self._damaged = None
        damaged.fail(Unavailable(f"{self.digest} was damaged on disk and is fetched again"))
        self._sources.node.remove(self.digest)
        return await asyncio.to_thread(self._sources.library.partial, metainfo)

    async def _fetch(self, pieces: PieceFile, joined: Joined) -> None:
        """Return when the blob is whole and its digest is right."""
        hashing = asyncio.create_task(self._hash(pieces))
        learning: asyncio.Task[None] | None = None
        swarm: BlobSwarm | None = None
        try:
            await self._check_present(pieces)
            self._timeline.resumed = _bytes_of(pieces)
            if pieces.metainfo.count <= 1 and not pieces.all_verified:
                await self._fetch_small(pieces, joined.peers)
            if pieces.all_verified:
                self._sources.node.add(pieces)
            else:
                node = self._sources.node
                swarm = node.add(pieces)
                swarm.watcher = self._timeline
                if self._said is not None:
                    swarm.place = Place(self._said.manifest, self._said.layer)
                if node.peer.zone:
                    swarm.keep_to_zone(joined.share)
                node.leech(pieces, joined.peers)
                if not pieces.metainfo.whole:
                    learning = asyncio.create_task(self._learn(pieces, swarm))
                await self._watch(pieces, swarm, hashing)
            found = await hashing
            self._timeline.hash_done(self._now())
        finally:
            hashing.cancel()
            if learning is not None:
                learning.cancel()
            if swarm is not None:
                swarm.stop_leeching()
        if found != self.digest:
            await asyncio.to_thread(self._sources.library.discard_partial, self.digest)
            raise Unavailable(
                f"what came for {self.digest} has the digest {found}: nothing of it is kept"
            )

    async def _learn(self, pieces: PieceFile, swarm: BlobSwarm) -> None:
        """Ask for the digests of the pieces that the origins are still fetching."""
        try:
            while not swarm.metainfo.whole:
                try:
                    await swarm.learn(await self._more(swarm.metainfo.known))
                except CallFailed as error:
                    if isinstance(error, NotFound) or retry_after(error) is None:
                        raise
                    log.info("nobody tells of more pieces", digest=str(self.digest))
                    await asyncio.sleep(_ASK_AGAIN)
        except (ApiError, CallFailed, OSError, ValueError) as error:
            pieces.fail(
                Unavailable(f"{self.digest}: the origins could not fetch it to its end: {error}")
            )

    async def _more(self, known: int) -> Metainfo:
        """A growing metainfo with more than `known` pieces, or as it is after a while."""
        sources, deadline = self._sources, Deadline.after(_ASK_TIMEOUT)
        try:
            return await sources.tracker.metainfo(
                self.digest, deadline=deadline, namespace=self._namespace, known=known
            )
        except CallFailed as error:
            if not isinstance(error, Unreachable):
                raise
            located = await sources.origins.metainfo(
                self.digest, deadline=deadline, namespace=self._namespace, known=known
            )
            if located is None:
                raise NotFound(
                    "GET", f"/blobs/{self.digest}", f"no origin has {self.digest}"
                ) from error
            return located.metainfo

    async def _check_present(self, pieces: PieceFile) -> None:
        """Check what an earlier process left behind."""
        for index in bitset.indices(pieces.present & ~pieces.verified):
            await pieces.ensure(index)

    async def _fetch_small(self, pieces: PieceFile, peers: Sequence[PeerInfo]) -> None:
        """Fetch a blob of one piece in one request: a swarm would not make it faster.

        When no origin gives it, that is left to the hosts that have it, if there are any.
        """
        elsewhere = any(not peer.origin for peer in peers)
        size = pieces.metainfo.size
        data = self._brought
        if data is None:
            try:
                data = await self._read(size, _ORIGINS_FIRST if elsewhere else _ASK_TIMEOUT)
            except CallFailed as error:
                if not elsewhere:
                    raise
                log.warning("peers are asked", digest=str(self.digest), error=str(error))
                return
        _HTTP_BYTES.inc(len(data))
        if self._sources.node.ingress is not None:
            await self._sources.node.ingress.admit(share_of(pieces.metainfo), len(data))
        if not await pieces.store(0, memoryview(data)):
            raise Unavailable(f"{self.digest}: an origin's metainfo and content do not agree")
        self._timeline.received_over_http(size, self._now())

    async def _watch(
        self, pieces: PieceFile, swarm: BlobSwarm, hashing: asyncio.Task[Digest]
    ) -> None:
        """Return when the swarm has brought everything; help it when it does not."""
        now = self._sources.node.now
        verified, progress, sought, patience = pieces.verified, now(), now(), _SEEK
        known = swarm.metainfo.known
        few = _FEW * self._sources.node.config.max_dialed
        while not pieces.all_verified:
            await asyncio.wait([hashing], timeout=_LOOK)
            if hashing.done():
                return  # All came, or the file failed: awaiting the task tells.
            if pieces.verified != verified:
                verified, progress = pieces.verified, now()
            if swarm.metainfo.known != known:
                known, progress = swarm.metainfo.known, now()
            if now() - progress > self._sources.stall_timeout:
                missing = pieces.metainfo.count - pieces.verified.bit_count()
                raise Unavailable(
                    f"{self.digest}: nothing came for {self._sources.stall_timeout:g} s, "
                    f"{missing} pieces are missing; {len(swarm.links)} peers connected. "
                    "What is there is kept"
                )
            starved = now() - progress > _STARVED
            late = now() - sought > patience and len(swarm.links) < few
            if late or (starved and now() - sought > _SEEK):
                sought, patience = now(), min(2 * patience, _MAX_SEEK)
                self._sources.announcer.seek(self.digest, starved=starved)
            if now() - progress > _FALLBACK_AFTER and swarm.metainfo.whole:
                try:
                    await self._fetch_over_http(pieces, swarm)
                except (ApiError, CallFailed) as error:
                    digest = str(self.digest)
                    log.warning("still looking for peers", digest=digest, error=str(error))

    async def _fetch_over_http(self, pieces: PieceFile, swarm: BlobSwarm) -> None:
        """Fetch the first missing pieces from the origins as a range."""
        metainfo = pieces.metainfo
        first = bitset.first_gap(pieces.verified)
        count = max(1, _HTTP_RUN // metainfo.piece_size)
        last = min(first + count, metainfo.count)
        blob = await self._sources.origins.open(
            self.digest, deadline=Deadline.after(_ASK_TIMEOUT), namespace=self._namespace
        )
        buffer = bytearray()
        index = first
        async for chunk in blob.segments(metainfo.span(first)[0], metainfo.span(last - 1)[1]):
            buffer += chunk
            _HTTP_BYTES.inc(len(chunk))
            if self._sources.node.ingress is not None:
                await self._sources.node.ingress.admit(swarm.share, len(chunk))
            while index < last and len(buffer) >= metainfo.length(index):
                length = metainfo.length(index)
                piece = bytes(buffer[:length])
                del buffer[:length]
                if await swarm.take(index, piece):
                    self._timeline.received_over_http(length, self._now())
                else:
                    log.warning(
                        "an origin sent a wrong piece", digest=str(self.digest), piece=index
                    )
                index += 1

    async def _hash(self, pieces: PieceFile) -> Digest:
        """The digest of the whole, taken behind the frontier while pieces still come."""
        hasher = self.digest.hasher()
        buffer = memoryview(bytearray(min(_HASH_SLICE, pieces.metainfo.size)))
        file = pieces.file
        async for start, stop in pieces.readable(0, pieces.metainfo.size):
            began = self._now()
            work = partial(_hash_range, hasher, buffer, file.fd, start, stop)
            await file.run(self._sources.hashing, work)
            self._timeline.hashing += self._now() - began
        return Digest(self.digest.algorithm, hasher.hexdigest())


def _bytes_of(pieces: PieceFile) -> int:
    """The bytes of the pieces that are there and right."""
    metainfo = pieces.metainfo
    if not pieces.verified:
        return 0
    last = metainfo.count - 1
    short = metainfo.piece_size - metainfo.length(last) if pieces.verified >> last & 1 else 0
    return pieces.verified.bit_count() * metainfo.piece_size - short


def _hash_range(hasher: Hasher, buffer: memoryview, fd: int, start: int, stop: int) -> None:
    while start < stop:
        count = os.preadv(fd, [buffer[: stop - start]], start)
        if count == 0:
            raise OSError(f"the file ends at byte {start}, before {stop}")
        hasher.update(buffer[:count])
        start += count
