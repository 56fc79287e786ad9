# SPDX-License-Identifier: Apache-2.0
"""``shoal origin``: wires the origin together and runs it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence

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
from shoal.origin.readiness import Readiness
from shoal.origin.receiving import Receiver
from shoal.origin.refresh import Refresh
from shoal.origin.seeding import OwnersShare, SeededBlobs
from shoal.origin.service import OriginService
from shoal.origin.sweep import Sweeper
from shoal.origin.uploads import ChunkedUploads
from shoal.origin.writeback import WriteBack
from shoal.queue.database import QueueUnusable
from shoal.store.blobs import BlobStore
from shoal.store.room import Room
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSessions
from shoal.store.volumes import Volumes, VolumesUnusable, open_volumes
from shoal.swarm.node import SwarmNode
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.security import CannotSecure
from shoal.swarm.view import swarm_view
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.logs import configure
from shoal.web.process import CannotListen
from shoal.web.server import Stop, run, serve

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
    http = HttpClient(user_agent="shoal-origin")
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

    copies = BackedCopies(store, local, busy, forget)
    room = Room(volumes, config.cache.limits, copies)
    receiver = Receiver(
        store, idle_timeout=config.idle_timeout, max_blob=config.max_blob, room=room
    )
    backends = _open_backends(config, http)
    stored = BlobBackends(backends, _patterns(config))
    writeback = await _write_back(config, local, cluster, stored)
    service = OriginService(
        config.member,
        local,
        receiver,
        cluster,
        writeback,
        memory_cache=config.memory_cache,
    )
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
    uploads = ChunkedUploads(sessions, receiver, service)

    seeded = SeededBlobs(local, forget)
    plan = OwnersShare(config.member, cluster.owners)
    try:
        node = SwarmNode(config.peer, _peer(config), seeded, seeding=plan)
    except CannotSecure as error:
        raise SystemExit(str(error)) from None
    index = None if config.build_index is None else BuildIndexClient(http, config.build_index)
    sweeper = _sweeper(config, index, local, forget)
    joining = Joining(config, cluster.listed)
    readiness = Readiness(config, volumes, joining, lambda: node.listening)

    async def missing() -> list[str]:
        return [*await readiness.missing(), *await writeback.missing()]

    app = origin_application(
        service,
        uploads,
        refresh,
        node.peer,
        sweeper,
        readiness=missing,
        request_timeout=config.request_timeout,
    )

    async def get_swarm(_: web.Request) -> web.Response:
        return web.json_response(swarm_view(node))

    app.router.add_get("/swarm", get_swarm)
    if faults:
        faults_on_purpose.add_to(app)
    chores = [asyncio.create_task(_expire(uploads, config.upload_ttl), name="expiry of uploads")]
    chores.append(asyncio.create_task(room.watch(), name="room"))
    chores.append(asyncio.create_task(joining.run(stop), name="joining"))
    if sweeper is not None and config.gc.interval:
        chores.append(asyncio.create_task(sweeper.sweep_every(config.gc.interval), name="sweeps"))
    try:
        await cluster.start()
        if index is not None:
            await index.start()
        await _listen_to_peers(node, config)
        await serve([(app, config.listen)], stop=stop, grace=config.shutdown_grace)
    finally:
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await refresh.close()
        # Uploads were acknowledged at the write quorum; the copies beyond it get their time, too.
        await cluster.drain(config.shutdown_grace / 2)
        await writeback.stop(config.shutdown_grace / 4)
        await cluster.close()
        if index is not None:
            await index.close()
        await node.stop()
        await seeded.close()
        await backends.close()
        await http.close()
    if joining.failure:
        raise SystemExit(joining.failure)


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


def _sweeper(
    config: OriginConfig,
    index: BuildIndexClient | None,
    local: LocalBlobs,
    forget: Callable[[Digest], None],
) -> Sweeper | None:
    if index is None:
        return None

    async def wanted(digests: Sequence[Digest], deadline: Deadline) -> set[Digest]:
        return await index.wanted(digests, deadline=deadline)

    return Sweeper(config.member, local, wanted, forget, grace=config.gc.grace)


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
