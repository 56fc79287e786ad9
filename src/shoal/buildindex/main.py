# SPDX-License-Identifier: Apache-2.0
"""``shoal build-index``: wires the build-index together and runs it."""

from __future__ import annotations

import sys

from shoal.buildindex.api import Api
from shoal.buildindex.config import BuildIndexConfig
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.resolver import Resolver
from shoal.buildindex.service import BuildIndex
from shoal.buildindex.tag_types import TagTypes
from shoal.buildindex.tags import TagDatabase, TagDatabaseUnusable, TagStore
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
        database = TagDatabase(config.data_dir)
    except (TagDatabaseUnusable, OSError) as error:
        sys.exit(f'cannot start (config key "data_dir"): {error}')

    async def build_index(stop: Stop) -> None:
        await _serve(config, TagStore(database), stop)

    run(build_index, loop="uvloop")


async def _serve(config: BuildIndexConfig, store: TagStore, stop: Stop) -> None:
    http = HttpClient(user_agent="shoal-build-index")
    origins = OriginCluster(http, config.origins)
    index = BuildIndex(
        store,
        Resolver(origins, config.origins.write_quorum, config.resolver, TagTypes(config.tag_types)),
        neighbours=lambda index: Neighbours(
            http,
            store,
            config.neighbours,
            index.accept,
            timeout=config.neighbour_timeout,
            interval=config.sync_interval,
        ),
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
