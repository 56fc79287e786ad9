# SPDX-License-Identifier: Apache-2.0
"""``shoal proxy``: wires the proxy together and runs it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from shoal.buildindex.client import BuildIndexClient
from shoal.config.load import Loaded
from shoal.origin.client import OriginCluster
from shoal.proxy.api import proxy_application
from shoal.proxy.config import ProxyConfig
from shoal.proxy.readiness import Readiness
from shoal.proxy.service import ProxyService
from shoal.proxy.uploads import Uploads
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSessions
from shoal.web.client import HttpClient
from shoal.web.logs import configure
from shoal.web.server import Stop, run, serve


def main(loaded: Loaded[ProxyConfig]) -> None:
    """Run one proxy in the foreground until it is told to stop."""
    config = loaded.value
    configure(config.log, "proxy")

    async def proxy(stop: Stop) -> None:
        await _serve(config, stop)

    run(proxy, loop="uvloop")


async def _serve(config: ProxyConfig, stop: Stop) -> None:
    http = HttpClient(user_agent="shoal-proxy")
    origins = OriginCluster(http, config.origins)
    uploads = Uploads(
        await in_thread(UploadSessions, config.data_dir / "uploads"),
        idle_timeout=config.upload_idle_timeout,
    )
    service = ProxyService(
        origins=origins,
        index=BuildIndexClient(http, config.build_index),
        uploads=uploads,
        write_quorum=config.origins.write_quorum,
    )
    readiness = Readiness(
        http,
        origins=config.origins.hosts,
        write_quorum=config.origins.write_quorum,
        build_indexes=config.build_index.hosts,
    )
    expiry = asyncio.create_task(uploads.expire(config.upload_ttl), name="expiry of uploads")
    try:
        app = proxy_application(service, readiness, config)
        await serve([(app, config.listen)], stop=stop, grace=0.75 * config.shutdown_grace)
    finally:
        expiry.cancel()
        with suppress(asyncio.CancelledError):
            await expiry
        # Pushes were acknowledged at the write quorum; the copies beyond it get their time, too.
        await origins.drain(0.25 * config.shutdown_grace)
        await http.close()
