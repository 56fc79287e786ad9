# SPDX-License-Identifier: Apache-2.0
"""Who may do what on a listener that speaks TLS: one rule in front of every route.

Whoever shows a certificate of the cluster's CA belongs to the cluster. All others may read what is
not internal: blobs, tags, health, metrics.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from shoal.config.model import Clients
from shoal.model.errors import Denied

READS = frozenset({"GET", "HEAD", "OPTIONS"})
INTERNAL = "/internal/"
"""What routes begin with that are for services of the cluster alone."""
CHANGING = "/preload/"
"""What routes begin with that change something, although they take GET."""


def guard(app: web.Application, clients: Clients) -> None:
    """Put the gate behind the application's edge, which renders errors, and before all else."""
    app.middlewares.insert(1, _gate(clients))


def _gate(clients: Clients) -> Middleware:
    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.get_extra_info("peercert") or _is_open(request, clients):
            return await handler(request)
        raise Denied(
            f"{request.method} {request.path} needs a client certificate that the CA of this "
            "cluster has issued; none was shown"
        )

    return gate


def _is_open(request: web.Request, clients: Clients) -> bool:
    # By the route that was found, not by the path: there are many ways to write a path.
    resource = request.match_info.route.resource
    path = "" if resource is None else resource.canonical
    if path.startswith(INTERNAL):
        return False
    return clients == "optional" or (request.method in READS and not path.startswith(CHANGING))
