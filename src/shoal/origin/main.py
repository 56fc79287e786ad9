# SPDX-License-Identifier: Apache-2.0
"""``shoal origin``: wires the origin together and runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from aiohttp import web

from shoal.buildindex.client import BuildIndexClient
from shoal.config.load import Loaded
from shoal.config.units import split_address
from shoal.model.digest import Digest
from shoal.origin import faults as faults_on_purpose
from shoal.origin.api import origin_application
from shoal.origin.client import OriginCluster
from shoal.origin.config import OriginConfig
from shoal.origin.local import LocalBlobs
from shoal.origin.readiness import Readiness
from shoal.origin.receiving import Receiver
from shoal.origin.seeding import OwnersShare, SeededBlobs
from shoal.origin.service import OriginService
from shoal.origin.sweep import Sweeper
from shoal.origin.uploads import ChunkedUploads
from shoal.store.blobs import BlobStore
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSessions
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
    store = await in_thread(BlobStore, config.data_dir)
    sessions = await in_thread(UploadSessions, config.data_dir / "uploads")
    local = LocalBlobs(store)
    receiver = Receiver(store, idle_timeout=config.idle_timeout, max_blob=config.max_blob)
    service = OriginService(config.member, local, receiver, cluster)
    uploads = ChunkedUploads(sessions, receiver, service)

    def forget(digest: Digest) -> None:
        node.remove(digest)

    seeded = SeededBlobs(local, forget)
    plan = OwnersShare(config.member, cluster.owners)
    try:
        node = SwarmNode(config.peer, _peer(config), seeded, seeding=plan)
    except CannotSecure as error:
        raise SystemExit(str(error)) from None
    sweeper = _sweeper(config, http, local, forget)
    readiness = Readiness(config, lambda: node.listening)
    app = origin_application(
        service,
        uploads,
        node.peer,
        sweeper,
        readiness=readiness.missing,
        request_timeout=config.request_timeout,
    )

    async def get_swarm(_: web.Request) -> web.Response:
        return web.json_response(swarm_view(node))

    app.router.add_get("/swarm", get_swarm)
    if faults:
        faults_on_purpose.add_to(app)
    chores = [asyncio.create_task(_expire(uploads, config.upload_ttl), name="expiry of uploads")]
    if sweeper is not None and config.gc.interval:
        chores.append(asyncio.create_task(sweeper.sweep_every(config.gc.interval), name="sweeps"))
    try:
        await _listen_to_peers(node, config)
        await serve([(app, config.listen)], stop=stop, grace=config.shutdown_grace)
    finally:
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        # Uploads were acknowledged at the write quorum; the copies beyond it get their time, too.
        await cluster.drain(config.shutdown_grace / 2)
        await node.stop()
        await seeded.close()
        await http.close()


def _sweeper(
    config: OriginConfig, http: HttpClient, local: LocalBlobs, forget: Callable[[Digest], None]
) -> Sweeper | None:
    if config.build_index is None:
        return None
    build_index = BuildIndexClient(http, config.build_index)

    async def wanted(digests: Sequence[Digest], deadline: Deadline) -> set[Digest]:
        return await build_index.wanted(digests, deadline=deadline)

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
