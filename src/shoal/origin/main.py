# SPDX-License-Identifier: Apache-2.0
"""``shoal origin``: wires the origin together and runs it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web

from shoal.backend.matching import Backends
from shoal.buildindex.client import BuildIndexClient
from shoal.config.load import ConfigError, Loaded
from shoal.config.units import split_address
from shoal.model.digest import Digest
from shoal.origin import faults as faults_on_purpose
from shoal.origin.api import origin_application
from shoal.origin.backends import BlobBackends
from shoal.origin.client import OriginCluster
from shoal.origin.config import OriginConfig
from shoal.origin.eviction import BackedCopies
from shoal.origin.joining import Joining
from shoal.origin.local import LocalBlobs
from shoal.origin.prefetch import Prefetcher
from shoal.origin.readiness import Readiness
from shoal.origin.receiving import Receiver
from shoal.origin.refresh import Refresh
from shoal.origin.repair import AskWanted
from shoal.origin.seeding import OwnersShare, SeededBlobs
from shoal.origin.service import OriginService
from shoal.origin.sweep import Sweeper
from shoal.origin.upkeep import Upkeep
from shoal.origin.upkeep_api import UpkeepRoutes
from shoal.origin.uploads import ChunkedUploads
from shoal.origin.writeback import WriteBack
from shoal.queue.database import QueueUnusable
from shoal.store.blobs import BlobStore
from shoal.store.memory import MemoryCache
from shoal.store.room import Room
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSessions
from shoal.store.volumes import Volumes, VolumesUnusable, open_volumes
from shoal.swarm.node import SwarmNode
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.view import swarm_view
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.logs import configure
from shoal.web.process import CannotListen
from shoal.web.server import Listener, Stop, run, serve
from shoal.web.tls import Tls

EXPIRY_INTERVAL = 600.0
"""Seconds between looks for uploads that nobody continues."""


def main(loaded: Loaded[OriginConfig], *, faults: bool = False) -> None:
    """Run one origin in the foreground until it is told to stop.

    `faults` opens the route of `shoal.origin.faults`: for tests and ``shoal bench race`` alone.
    """
    config = loaded.value
    configure(config.log, "origin")

    async def origin(stop: Stop) -> None:
        await _serve(config, stop, faults=faults)

    # Plain asyncio: what an origin does most is sendfile, which needs no other loop.
    run(origin, loop="asyncio")


async def _serve(config: OriginConfig, stop: Stop, *, faults: bool) -> None:
    tls = Tls(config.tls)
    http = HttpClient(user_agent="shoal-origin", tls=tls)
    # The cluster's certificates are none of those outside of it.
    outside = HttpClient(user_agent="shoal-origin")
    origin = await _Origin.assemble(config, http, outside)
    app = origin.application()
    if faults:
        faults_on_purpose.add_to(app)
    joining = Joining(config, origin.cluster.listed)
    origin.readiness = Readiness(config, origin.volumes, joining, lambda: origin.node.listening)
    chores = [asyncio.create_task(work, name=name) for name, work in origin.chores()]
    chores.append(asyncio.create_task(joining.run(stop), name="joining"))
    try:
        await origin.start()
        listener = Listener(app, config.listen, tls=tls, clients=config.tls.clients)
        await serve([listener], stop=stop, grace=config.shutdown_grace)
    finally:
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await origin.stop()
        await outside.close()
        await http.close()
    if joining.failure:
        raise SystemExit(joining.failure)


@dataclass
class _Origin:
    """The parts of one origin, put together."""

    config: OriginConfig
    cluster: OriginCluster
    volumes: Volumes
    room: Room
    memory: MemoryCache
    backends: Backends
    writeback: WriteBack
    service: OriginService
    refresh: Refresh
    prefetcher: Prefetcher
    uploads: ChunkedUploads
    seeded: SeededBlobs
    node: SwarmNode
    index: BuildIndexClient | None
    sweeper: Sweeper | None
    upkeep: Upkeep
    readiness: Readiness | None = None

    @classmethod
    async def assemble(cls, config: OriginConfig, http: HttpClient, outside: HttpClient) -> _Origin:
        """Open what is on disk and wire the parts; nothing runs yet but the write-back.

        `http` calls the cluster's services, `outside` the backends.
        """
        cluster = OriginCluster(http, config.origins)
        volumes = await in_thread(_open_volumes, config)
        store = await in_thread(BlobStore, volumes)
        sessions = await in_thread(UploadSessions, volumes.under("uploads"))
        local = LocalBlobs(store)

        def forget(digest: Digest) -> None:
            node.remove(digest)

        def busy(digest: Digest) -> bool:
            shared = node.blobs.get(digest)
            return shared is not None and shared.pieces.file.shared

        room = Room(volumes, config.cache.limits, BackedCopies(store, local, busy, forget))
        receiver = Receiver(
            store, idle_timeout=config.idle_timeout, max_blob=config.max_blob, room=room
        )
        backends = _open_backends(config, outside)
        stored = BlobBackends(backends, _patterns(config))
        writeback = await _write_back(config, local, cluster, stored)
        memory = MemoryCache(config.memory_cache, ttl=config.memory_ttl)
        service = OriginService(config.member, local, receiver, cluster, writeback, memory=memory)
        seeded = SeededBlobs(local, forget)
        node = _node(config, seeded, cluster)
        refresh = Refresh(
            config.member,
            local,
            receiver,
            cluster,
            stored,
            config=config.refresh,
            keep=service.keep_fetched,
            spread=service.replicate,
            show=lambda growing: seeded.show(node, growing),
            unshow=forget,
        )
        service.connect(refresh)
        index = None if config.build_index is None else BuildIndexClient(http, config.build_index)
        wanted = _wanted(index)
        upkeep = Upkeep(
            config,
            cluster,
            store,
            local,
            service,
            forget=forget,
            wanted=wanted,
            debts=writeback,
            repositories=lambda digest: {
                entry.rpartition("|")[2] for entry in local.backing.entries(digest)
            },
        )
        sweeper = None
        if wanted is not None:
            sweeper = Sweeper(config.member, local, wanted, forget, grace=config.gc.grace)
        return cls(
            config,
            cluster,
            volumes,
            room,
            memory,
            backends,
            writeback,
            service,
            refresh,
            # The others are for blobs that somebody waits for.
            Prefetcher(cluster, refresh, concurrency=max(1, config.refresh.concurrency // 2)),
            ChunkedUploads(sessions, receiver, service),
            seeded,
            node,
            index,
            sweeper,
            upkeep,
        )

    def application(self) -> web.Application:
        """The HTTP API."""
        app = origin_application(
            self.service,
            self.uploads,
            self.refresh,
            self.node.peer,
            self.sweeper,
            prefetcher=self.prefetcher,
            readiness=self._missing,
            request_timeout=self.config.request_timeout,
        )
        UpkeepRoutes(self.upkeep).add_to(app.router)

        async def get_swarm(_: web.Request) -> web.Response:
            return web.json_response(swarm_view(self.node))

        app.router.add_get("/swarm", get_swarm)
        return app

    async def _missing(self) -> list[str]:
        if self.readiness is None:
            return ["the origin is starting"]
        return [*await self.readiness.missing(), *await self.writeback.missing()]

    def chores(self) -> Iterator[tuple[str, Coroutine[object, object, None]]]:
        """What runs as long as the origin does."""
        yield "expiry of uploads", _expire(self.uploads, self.config.upload_ttl)
        yield "room", self.room.watch()
        yield "memory", self.memory.expire()
        if self.sweeper is not None and self.config.gc.interval:
            yield "sweeps", self.sweeper.sweep_every(self.config.gc.interval)

    async def start(self) -> None:
        """Find the others, and listen to peers."""
        await self.cluster.start()
        if self.index is not None:
            await self.index.start()
        await _listen_to_peers(self.node, self.config)
        self.upkeep.start()

    async def stop(self) -> None:
        """End all in the order in which each can still use what it needs."""
        grace = self.config.shutdown_grace
        await self.upkeep.stop()
        await self.prefetcher.close()
        await self.refresh.close()
        # Uploads were acknowledged at the write quorum; the copies beyond it get their time, too.
        await self.cluster.drain(grace / 2)
        await self.writeback.stop(grace / 4)
        await self.cluster.close()
        if self.index is not None:
            await self.index.close()
        await self.node.stop()
        await self.seeded.close()
        await self.backends.close()


def _open_backends(config: OriginConfig, http: HttpClient) -> Backends:
    try:
        return Backends.open(config.backends, config.upstreams, http)
    except ConfigError as error:
        sys.exit(f"cannot start: {error}")


def _patterns(config: OriginConfig) -> list[str]:
    """Those of the backends that hold blobs."""
    return [entry.match for entry in config.backends if "blobs" in entry.holds and entry.match]


async def _write_back(
    config: OriginConfig, local: LocalBlobs, cluster: OriginCluster, backends: BlobBackends
) -> WriteBack:
    try:
        return await WriteBack.start(config, local, cluster, backends)
    except (QueueUnusable, OSError) as error:
        sys.exit(f'cannot start (config key "data_dir"): {error}')


def _open_volumes(config: OriginConfig) -> Volumes:
    weights = {volume.path: volume.weight for volume in config.volumes}
    try:
        return open_volumes(config.data_dir, weights)
    except VolumesUnusable as error:
        raise SystemExit(f'cannot start (config key "volumes"): {error}') from None


def _wanted(index: BuildIndexClient | None) -> AskWanted | None:
    """Asks the build-indexes which blobs are needed, if there are any."""
    if index is None:
        return None

    async def wanted(digests: Sequence[Digest], deadline: Deadline) -> set[Digest]:
        return await index.wanted(digests, deadline=deadline)

    return wanted


def _node(config: OriginConfig, seeded: SeededBlobs, cluster: OriginCluster) -> SwarmNode:
    plan = OwnersShare(config.member, cluster.owners)
    return SwarmNode(config.peer.within(config.tls), _peer(config), seeded, seeding=plan)


async def _listen_to_peers(node: SwarmNode, config: OriginConfig) -> None:
    try:
        await node.start()
    except OSError as error:
        raise CannotListen(config.peer.listen, "peer.listen", error) from error


def _peer(config: OriginConfig) -> PeerInfo:
    host, port = split_address(config.peer.advertise or config.peer.listen)
    return PeerInfo(new_peer_id(), host, port, config.zone, origin=True)


async def _expire(uploads: ChunkedUploads, ttl: float) -> None:
    while True:
        await asyncio.sleep(EXPIRY_INTERVAL)
        await uploads.expire(time.time(), ttl)
