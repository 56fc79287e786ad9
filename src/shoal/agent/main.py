# SPDX-License-Identifier: Apache-2.0
"""``shoal agent``: wires the agent together and runs it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic

from shoal.agent.announcer import Announcer
from shoal.agent.api import admin_application, registry_application
from shoal.agent.config import AgentConfig
from shoal.agent.download import Sources
from shoal.agent.library import Library
from shoal.agent.membership import Membership
from shoal.agent.preload import preload_of
from shoal.agent.pulls import Pulls
from shoal.agent.readiness import AgentReadiness
from shoal.agent.service import AgentService
from shoal.agent.timeline import Journal
from shoal.buildindex.client import BuildIndexClient
from shoal.config.load import Loaded
from shoal.config.units import split_address
from shoal.origin.client import OriginCluster
from shoal.store.memory import MemoryCache
from shoal.store.room import Room
from shoal.swarm.node import SwarmNode
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.tracker.client import TrackerClient
from shoal.web.client import HttpClient
from shoal.web.logs import configure
from shoal.web.process import CannotListen
from shoal.web.server import Listener, Stop, run, serve
from shoal.web.tls import Tls


def main(loaded: Loaded[AgentConfig]) -> None:
    """Run one agent in the foreground until it is told to stop."""
    config = loaded.value
    configure(config.log, "agent")

    async def agent(stop: Stop) -> None:
        await _serve(config, stop)

    # The loop of asyncio itself: only it sends files with sendfile.
    run(agent, loop="asyncio")


async def _serve(config: AgentConfig, stop: Stop) -> None:
    tls = Tls(config.tls)
    http = HttpClient(user_agent="shoal-agent", tls=tls)
    origins = OriginCluster(http, config.origins)
    tracker = TrackerClient(http, config.tracker)
    index = BuildIndexClient(http, config.build_index)
    host, port = split_address(config.peer.advertise or config.peer.listen)
    journal = Journal(monotonic())
    service = AgentService(journal)
    peer = PeerInfo(new_peer_id(), host, port, config.zone)
    node = SwarmNode(config.peer.within(config.tls), peer, service)
    library = await asyncio.to_thread(Library, config.data_dir, node.executor)
    hashing = ThreadPoolExecutor(2, thread_name_prefix="digest")
    announcer = Announcer(node, tracker)
    room = Room(library.volumes, config.cache.limits, service)
    service.connect(
        Sources(node, tracker, announcer, origins, library, room, hashing, config.stall_timeout)
    )
    manifests = MemoryCache(config.manifest_cache, ttl=config.manifest_ttl)
    pulls = Pulls(
        index=index,
        blobs=service,
        origins=origins,
        disk=library,
        membership=Membership(),
        manifests=manifests,
        journal=journal,
    )
    readiness = AgentReadiness(node, tracker, index)
    try:
        await node.start()
    except OSError as error:
        raise CannotListen(config.peer.listen, "peer.listen", error) from error
    # Only failures of real calls count here: checks by every host would be a load on the origins.
    await asyncio.gather(origins.start(check=False), tracker.start(), index.start())
    announcing = asyncio.create_task(service.announce(), name="announce")
    watching = asyncio.create_task(room.watch(), name="room")
    expiring = asyncio.create_task(manifests.expire(), name="memory")
    try:
        apps = [
            Listener(
                registry_application(pulls, readiness, config),
                config.listen,
                tls=tls if config.registry_tls else None,
                clients="optional",
            ),
            Listener(
                admin_application(
                    pulls, service, node, readiness, journal, preload_of(config, pulls), config
                ),
                config.admin,
                "admin",
                tls=tls,
                clients=config.tls.clients,
            ),
        ]
        await serve(apps, stop=stop, grace=config.shutdown_grace)
    finally:
        for chore in (announcing, watching, expiring):
            chore.cancel()
            with suppress(asyncio.CancelledError):
                await chore
        await service.stop()
        await node.stop()
        await asyncio.gather(origins.close(), tracker.close(), index.close())
        await asyncio.to_thread(hashing.shutdown)
        await http.close()
