# SPDX-License-Identifier: Apache-2.0
"""``shoal build-index``: wires the build-index together and runs it."""

from __future__ import annotations

import sys

from shoal.buildindex.api import Api
from shoal.buildindex.collector import Collector
from shoal.buildindex.config import BuildIndexConfig
from shoal.buildindex.database import Database, DatabaseUnusable
from shoal.buildindex.members import Members
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.resolver import Resolver
from shoal.buildindex.service import BuildIndex
from shoal.buildindex.store import Store
from shoal.buildindex.tag_types import TagTypes
from shoal.config.load import Loaded
from shoal.origin.client import OriginCluster
from shoal.web.client import HttpClient
from shoal.web.logs import configure
from shoal.web.server import Stop, application, run, serve


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
    http = HttpClient(user_agent="shoal-build-index")
    origins = OriginCluster(http, config.origins)
    neighbours = Neighbours(
        http,
        store,
        config.neighbours,
        timeout=config.neighbour_timeout,
        interval=config.sync_interval,
    )
    resolver = Resolver(
        origins,
        Members(store, neighbours),
        config.origins.write_quorum,
        config.resolver,
        TagTypes(config.tag_types),
    )
    index = BuildIndex(
        store,
        neighbours,
        resolver,
        Collector(store, neighbours, config.gc, tombstone_ttl=config.tombstone_ttl),
        gc_grace=config.gc.grace,
        origins_missing=origins.readiness,
    )
    app = application(
        "build-index", readiness=index.readiness, request_timeout=config.request_timeout
    )
    Api(index).add_routes(app)
    try:
        await index.start(config.catch_up_timeout)
        await serve([(app, config.listen)], stop=stop, grace=config.shutdown_grace)
    finally:
        await index.stop()
        await http.close()
