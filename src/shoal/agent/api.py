# SPDX-License-Identifier: Apache-2.0
"""The agent over HTTP: the registry for this host's runtime, and the admin endpoint."""

from __future__ import annotations

from time import monotonic

import msgspec
from aiohttp import web

from shoal.agent.config import AgentConfig
from shoal.agent.preload import DEFAULT_NAMESPACE, RUNTIMES, Preload
from shoal.agent.pulls import Pulls
from shoal.agent.readiness import AgentReadiness
from shoal.agent.service import AgentService
from shoal.agent.timeline import Journal
from shoal.agent.why import why
from shoal.backend.upstreams import UpstreamConfig, UpstreamNames
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BlobUnknown, DigestInvalid, NameInvalid, TagInvalid
from shoal.model.names import InvalidName, InvalidTag, repository_name, split_tag
from shoal.registry.app import registry_routes
from shoal.registry.base import parameter, parse_image
from shoal.registry.namespaces import name_at
from shoal.swarm.node import SwarmNode
from shoal.swarm.view import swarm_view
from shoal.web.bodies import send_blob
from shoal.web.callers import while_connected
from shoal.web.deadline import Deadline
from shoal.web.server import application


def registry_application(
    pulls: Pulls, readiness: AgentReadiness, config: AgentConfig
) -> web.Application:
    """What the container runtime talks to.

    Generic blobs are not served here: their namespaces do not say who may read which digest.
    """
    app = application("agent", readiness=readiness.missing)
    registry_routes(app, pulls, None, upstreams=config.upstreams)
    return app


def admin_application(  # noqa: PLR0917 -- what an operator asks about
    pulls: Pulls,
    service: AgentService,
    node: SwarmNode,
    readiness: AgentReadiness,
    journal: Journal,
    preload: Preload,
    config: AgentConfig,
) -> web.Application:
    """Generic blobs, tags, preload, the state of the swarm; where the time of a pull went."""
    app = application("agent", readiness=readiness.missing)
    _generic_blobs(app, service, config)
    _preload(app, preload, UpstreamNames(dict.fromkeys(config.upstreams, UpstreamConfig())))

    async def get_tag(request: web.Request) -> web.Response:
        try:
            repository, tag = split_tag(request.match_info["tag"])
        except InvalidName as error:
            raise NameInvalid(str(error)) from error
        except InvalidTag as error:
            raise TagInvalid(str(error)) from error
        deadline = Deadline.from_headers(request.headers, config.request_timeout)
        return web.Response(text=str(await pulls.resolve(repository, tag, deadline)))

    async def delete_blob(request: web.Request) -> web.Response:
        digest = _digest(request)
        if not await service.delete(digest):
            raise BlobUnknown(f"{digest} is not on this host")
        return web.Response(status=202)

    async def get_swarm(_: web.Request) -> web.Response:
        return web.json_response(swarm_view(node))

    async def get_why(request: web.Request) -> web.Response:
        report = why(journal, *parse_image(request.match_info["image"]), monotonic())
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")

    app.router.add_get("/why/{image:.+}", get_why)
    app.router.add_get("/tags/{tag:.+}", get_tag)
    app.router.add_delete("/blobs/{digest}", delete_blob)
    app.router.add_get("/swarm", get_swarm)
    return app


def _generic_blobs(app: web.Application, service: AgentService, config: AgentConfig) -> None:
    async def get_blob(request: web.Request) -> web.StreamResponse:
        digest = _digest(request)
        try:
            namespace = repository_name(request.match_info["namespace"])
        except InvalidName as error:
            raise NameInvalid(str(error)) from error
        deadline = Deadline.from_headers(request.headers, config.request_timeout)
        if request.method == "HEAD":
            size = await service.size(digest, deadline, namespace)
            if size is None:
                raise BlobUnknown(f"no origin has blob {digest}", detail={"digest": str(digest)})
            return web.Response(
                headers={"Content-Length": str(size), "Docker-Content-Digest": str(digest)}
            )
        blob = await service.open_blob(digest, namespace, deadline)
        return await send_blob(request, blob, digest=digest)

    app.router.add_get("/namespace/{namespace:.+}/blobs/{digest}", get_blob)


def _preload(app: web.Application, preload: Preload, upstreams: UpstreamNames) -> None:
    async def pull(request: web.Request) -> web.Response:
        """``/preload/tags/{repository}:{tag}?runtime=docker|containerd&namespace=``."""
        repository, reference = parse_image(request.match_info["image"])
        work = preload.image(
            name_at(upstreams, "", repository, here=""),
            reference,
            Deadline.from_headers(request.headers, preload.timeout),
            runtime=parameter(request, "runtime") or RUNTIMES[0],
            namespace=parameter(request, "namespace") or DEFAULT_NAMESPACE,
            told=repository,
        )
        # Who does not wait any more is no reason to fill this host's disk.
        done = await while_connected(request, work)
        return web.Response(body=msgspec.json.encode(done), content_type="application/json")

    # GET is what Kraken's users send. A HEAD must not pull.
    app.router.add_get("/preload/tags/{image:.+}", pull, allow_head=False)
    app.router.add_post("/preload/tags/{image:.+}", pull)


def _digest(request: web.Request) -> Digest:
    try:
        return Digest.parse(request.match_info["digest"])
    except InvalidDigest as error:
        raise DigestInvalid(str(error)) from error
