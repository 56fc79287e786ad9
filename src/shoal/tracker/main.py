# SPDX-License-Identifier: Apache-2.0
"""``shoal tracker``: wires the tracker together and runs it."""

from __future__ import annotations

import asyncio

from shoal.config.load import Loaded
from shoal.origin.client import OriginCluster
from shoal.tracker.api import Api
from shoal.tracker.config import MEMORY, TrackerConfig
from shoal.tracker.metainfos import Metainfos
from shoal.tracker.metrics import export
from shoal.tracker.origins import OriginWatch
from shoal.tracker.service import Tracker
from shoal.tracker.store import MemoryStore, SwarmStore
from shoal.tracker.swarms import Swarms
from shoal.web.client import HttpClient
from shoal.web.logs import configure
from shoal.web.server import Listener, Stop, application, run, serve
from shoal.web.tls import Tls


def main(loaded: Loaded[TrackerConfig]) -> None:
    """Run one tracker in the foreground until it is told to stop."""
    config = loaded.value
    configure(config.log, "tracker")

    async def tracker(stop: Stop) -> None:
        await _serve(config, stop)

    run(tracker, loop="uvloop")


async def _serve(config: TrackerConfig, stop: Stop) -> None:
    tls = Tls(config.tls)
    http = HttpClient(user_agent="shoal-tracker", tls=tls)
    ring = config.origins
    origins = OriginCluster(http, ring)
    watch = OriginWatch(http, origins.listed)
    metainfos = Metainfos(
        origins,
        max_bytes=config.metainfo_cache,
        timeout=config.metainfo_timeout,
        refresh=config.origin_refresh,
        owners=min(ring.replicas, len(ring.hosts) or ring.replicas),
    )
    swarms = Swarms(peer_ttl=config.peer_ttl, handout=config.handout)
    store = _store(config, swarms)
    tracker = Tracker(store, metainfos, watch, announce_interval=config.announce_interval)
    export(swarms, metainfos)
    app = application(
        "tracker", readiness=tracker.readiness, request_timeout=config.request_timeout
    )
    Api(tracker).add_routes(app)
    await origins.start()
    await asyncio.gather(watch.start(), store.start())
    try:
        listener = Listener(app, config.listen, tls=tls, clients=config.tls.clients)
        await serve([listener], stop=stop, grace=config.shutdown_grace)
    finally:
        await watch.stop()
        await metainfos.close()
        await store.stop()
        await origins.close()
        await http.close()


def _store(config: TrackerConfig, swarms: Swarms) -> SwarmStore:
    if config.store == MEMORY:
        return MemoryStore(swarms)
    from shoal.tracker.redis_store import RedisStore  # noqa: PLC0415 needs the extra `redis`

    return RedisStore(config.store, swarms, peer_ttl=config.peer_ttl)
