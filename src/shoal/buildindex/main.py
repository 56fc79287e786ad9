# SPDX-License-Identifier: Apache-2.0
"""``shoal build-index``: wires the build-index together and runs it."""

from __future__ import annotations

import sys

from shoal.backend.matching import Backends
from shoal.backend.upstreams import UpstreamNames
from shoal.buildindex.api import Api
from shoal.buildindex.collector import Collector
from shoal.buildindex.config import BuildIndexConfig
from shoal.buildindex.database import Database, DatabaseUnusable
from shoal.buildindex.elsewhere import Elsewhere
from shoal.buildindex.listing import Listings
from shoal.buildindex.members import Members
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.publishing import Publisher
from shoal.buildindex.resolver import Resolver
from shoal.buildindex.service import BuildIndex
from shoal.buildindex.storage import Storage
from shoal.buildindex.store import Store
from shoal.buildindex.tag_types import TagTypes
from shoal.buildindex.upstreams import Upstreams
from shoal.buildindex.writeback import QUEUE, Writeback
from shoal.config.load import ConfigError, Loaded
from shoal.origin.client import OriginCluster
from shoal.queue.config import queue_file
from shoal.queue.database import QueueUnusable
from shoal.store.threads import in_thread
from shoal.web.client import HttpClient
from shoal.web.logs import configure
from shoal.web.server import Listener, Stop, application, run, serve
from shoal.web.tls import Tls


def main(loaded: Loaded[BuildIndexConfig]) -> None:
    """Run one build-index in the foreground until it is told to stop."""
    config = loaded.value
    configure(config.log, "build-index")
    try:
        database = Database(config.data_dir)
    except (DatabaseUnusable, OSError) as error:
        sys.exit(f'cannot start (config key "data_dir"): {error}')

    async def build_index(stop: Stop) -> None:
        await _serve(config, Store(database), stop)

    run(build_index, loop="uvloop")


async def _serve(config: BuildIndexConfig, store: Store, stop: Stop) -> None:
    tls = Tls(config.tls)
    http = HttpClient(user_agent="shoal-build-index", tls=tls)
    # The cluster's certificates are none of those outside of it.
    outside = HttpClient(user_agent="shoal-build-index")
    origins = OriginCluster(http, config.origins)
    neighbours = Neighbours(
        http,
        store,
        config.neighbours,
        timeout=config.neighbour_timeout,
        interval=config.sync_interval,
    )
    try:
        backends = Backends.open(config.backends, config.upstreams, outside)
    except ConfigError as error:
        sys.exit(f'cannot start (config key "backends"): {error}')
    writeback = await _writeback(config, store, backends)
    publisher = Publisher(
        store, neighbours, wrote=writeback.wake if writeback is not None else _nothing
    )
    elsewhere = _elsewhere(config, store, publisher, neighbours, backends, origins)
    resolver = Resolver(
        origins,
        Members(store, neighbours, elsewhere),
        config.origins.write_quorum,
        config.resolver,
        TagTypes(config.tag_types),
        has_backend=lambda repository: backends.for_blobs(repository) is not None,
    )
    index = BuildIndex(
        store,
        neighbours,
        publisher,
        resolver,
        Collector(
            store,
            neighbours,
            config.gc,
            tombstone_ttl=config.tombstone_ttl,
            unwritten=writeback.oldest_deletion if writeback is not None else _no_deletion,
        ),
        elsewhere=elsewhere,
        listings=Listings(store, backends, timeout=config.read_through.timeout),
        gc_grace=config.gc.grace,
        origins_missing=origins.readiness,
    )

    async def readiness() -> list[str]:
        missing = await index.readiness()
        return missing if writeback is None else missing + await writeback.missing()

    app = application("build-index", readiness=readiness, request_timeout=config.request_timeout)
    Api(index).add_routes(app)
    try:
        await origins.start()
        await index.start(config.catch_up_timeout)
        listener = Listener(app, config.listen, tls=tls, clients=config.tls.clients)
        await serve([listener], stop=stop, grace=0.9 * config.shutdown_grace)
    finally:
        if writeback is not None:
            await writeback.stop(0.1 * config.shutdown_grace)
        await index.stop()
        await backends.close()
        await origins.close()
        await outside.close()
        await http.close()


async def _writeback(
    config: BuildIndexConfig, store: Store, backends: Backends
) -> Writeback | None:
    """Open the queue, if a backend holds tags or an earlier config left tasks there."""
    if not backends.of_tags() and not await in_thread(queue_file(config.data_dir, QUEUE).exists):
        return None
    try:
        return await Writeback.start(
            config.data_dir, store, backends, config.backends, config.writeback
        )
    except (QueueUnusable, OSError) as error:
        sys.exit(f'cannot start (config key "data_dir"): {error}')


def _elsewhere(  # noqa: PLR0917 -- the parts that it is made of
    config: BuildIndexConfig,
    store: Store,
    publisher: Publisher,
    neighbours: Neighbours,
    backends: Backends,
    origins: OriginCluster,
) -> Elsewhere:
    return Elsewhere(
        store,
        Storage(
            store,
            publisher,
            neighbours,
            backends=backends,
            origins=origins,
            config=config.read_through,
        ),
        Upstreams(
            UpstreamNames(config.upstreams),
            store,
            publisher,
            backends,
            origins,
            timeout=config.read_through.timeout,
            failure=config.read_through.failure,
            renew_after_ms=round(config.gc.grace * 1000 / 2),
        ),
    )


async def _no_deletion() -> None:
    """There is no backend that is to be told of deletions."""


def _nothing() -> None:
    """There is no queue to be woken."""
