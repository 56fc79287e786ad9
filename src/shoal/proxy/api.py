# SPDX-License-Identifier: Apache-2.0
"""The proxy's HTTP face: the registry API, what every service has, and what neighbours ask."""

from __future__ import annotations

import msgspec
from aiohttp import web

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest, DigestInvalid
from shoal.proxy.config import ProxyConfig
from shoal.proxy.custody import Custody
from shoal.proxy.forwarding import UploadForwarding
from shoal.proxy.neighbours import (
    DELIVER_PATH,
    MARGIN,
    MAX_DIGESTS,
    DeliverAnswer,
    DeliverRequest,
)
from shoal.proxy.prefetch import Prefetch
from shoal.proxy.prefetch_api import PrefetchRoutes
from shoal.proxy.readiness import Readiness
from shoal.proxy.service import ProxyService
from shoal.registry.app import registry_routes
from shoal.web.server import application, deadline_of, read_json
from shoal.web.tls import Tls


def proxy_application(
    service: ProxyService,
    custody: Custody,
    prefetch: Prefetch,
    readiness: Readiness,
    config: ProxyConfig,
    *,
    tls: Tls | None = None,
) -> web.Application:
    """Return the application that serves `service`; `tls`: how other proxies are called."""
    app = application("proxy", readiness=readiness.missing, request_timeout=config.request_timeout)
    UploadForwarding(
        config.known_as, config.neighbours, idle_timeout=config.upload_idle_timeout, tls=tls
    ).install(app)
    registry_routes(app, service, service, upstreams=config.upstreams)
    PrefetchRoutes(prefetch).add_to(app)

    async def deliver(request: web.Request) -> web.Response:
        """Hurry blobs that wait here; answer when they are delivered, or just before time is up."""
        asked = await read_json(request, DeliverRequest, limit=MAX_DIGESTS * 150)
        if len(asked.digests) > MAX_DIGESTS:
            raise BadRequest(f"{len(asked.digests)} digests; at most {MAX_DIGESTS} are taken")
        try:
            digests = [Digest.parse(text) for text in asked.digests]
        except InvalidDigest as error:
            raise DigestInvalid(str(error)) from error
        deadline = deadline_of(request)
        late = await custody.delivered(
            digests, deadline.at_most(max(0.0, deadline.remaining() - MARGIN))
        )
        answer = DeliverAnswer({str(digest): how for digest, how in late.items()})
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    app.router.add_post(DELIVER_PATH, deliver)
    return app
