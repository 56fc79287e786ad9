# SPDX-License-Identifier: Apache-2.0
"""The proxy's HTTP face: the registry API, and what every service has."""

from __future__ import annotations

from aiohttp import web

from shoal.proxy.config import ProxyConfig
from shoal.proxy.readiness import Readiness
from shoal.proxy.service import ProxyService
from shoal.registry.app import registry_routes
from shoal.web.server import application


def proxy_application(
    service: ProxyService, readiness: Readiness, config: ProxyConfig
) -> web.Application:
    """Return the application that serves `service`."""
    app = application("proxy", readiness=readiness.missing, request_timeout=config.request_timeout)
    registry_routes(app, service, service)
    return app
