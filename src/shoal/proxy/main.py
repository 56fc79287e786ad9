# SPDX-License-Identifier: Apache-2.0
"""``shoal proxy``: wires the proxy together and runs it."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from shoal.buildindex.client import BuildIndexClient
from shoal.config.load import Loaded
from shoal.origin.client import OriginCluster
from shoal.proxy.api import proxy_application
from shoal.proxy.config import ProxyConfig, PushModes
from shoal.proxy.custody import QUEUE, DurableCustody, NoCustody
from shoal.proxy.neighbours import Neighbours
from shoal.proxy.prefetch import Prefetch
from shoal.proxy.readiness import Readiness
from shoal.proxy.service import ProxyService
from shoal.proxy.uploads import Uploads
from shoal.queue.config import queue_file
from shoal.queue.database import QueueUnusable
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSessions
from shoal.web.client import HttpClient
from shoal.web.logs import configure
from shoal.web.server import Listener, Stop, run, serve
from shoal.web.tls import Tls


def main(loaded: Loaded[ProxyConfig]) -> None:
    """Run one proxy in the foreground until it is told to stop."""
    config = loaded.value
    configure(config.log, "proxy")

    async def proxy(stop: Stop) -> None:
        await _serve(config, stop)

    run(proxy, loop="uvloop")


async def _serve(config: ProxyConfig, stop: Stop) -> None:
    tls = Tls(config.tls)
    http = HttpClient(user_agent="shoal-proxy", tls=tls)
    origins = OriginCluster(http, config.origins)
    index = BuildIndexClient(http, config.build_index)
    uploads = Uploads(
        await in_thread(UploadSessions, config.data_dir / "uploads"),
        idle_timeout=config.upload_idle_timeout,
        name=config.known_as,
    )
    modes = PushModes(config.push)
    custody = await _custody(config, modes, origins)
    service = ProxyService(
        origins=origins,
        index=index,
        uploads=uploads,
        write_quorum=config.origins.write_quorum,
        modes=modes,
        custody=custody,
        neighbours=Neighbours(http, config.neighbours),
        tag_time=config.tag_time,
        manifest_cache=config.manifest_cache,
    )
    readiness = Readiness(origins, index, custody)
    expiry = asyncio.create_task(uploads.expire(config.upload_ttl), name="expiry of uploads")
    await asyncio.gather(origins.start(), index.start())
    try:
        held = custody or NoCustody()
        prefetch = Prefetch(service, origins, held)
        app = proxy_application(service, held, prefetch, readiness, config, tls=tls)
        listener = Listener(app, config.listen, tls=tls, clients=config.tls.clients)
        await serve([listener], stop=stop, grace=0.75 * config.shutdown_grace)
    finally:
        expiry.cancel()
        with suppress(asyncio.CancelledError):
            await expiry
        if custody is not None:
            await custody.stop(0.1 * config.shutdown_grace)
        # Pushes were acknowledged at the write quorum; the copies beyond it get their time, too.
        await origins.drain(0.15 * config.shutdown_grace)
        await asyncio.gather(origins.close(), index.close())
        await http.close()


async def _custody(
    config: ProxyConfig, modes: PushModes, origins: OriginCluster
) -> DurableCustody | None:
    """Open the custody, if blobs are taken into it or an earlier config left some there."""
    if not modes.write_back and not await in_thread(queue_file(config.data_dir, QUEUE).exists):
        return None
    try:
        return await DurableCustody.start(config, origins)
    except (QueueUnusable, OSError) as error:
        sys.exit(f'cannot start (config key "data_dir"): {error}')
