# SPDX-License-Identifier: Apache-2.0
"""Prefetch over HTTP: Shoal's own request, and the form in which Kraken's users send it."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from aiohttp import web

from shoal.model.digest import Digest
from shoal.model.errors import ApiError, BadRequest
from shoal.model.names import split_host
from shoal.model.platforms import InvalidPlatform, Platform
from shoal.proxy.prefetch import Prefetch
from shoal.proxy.prefetch_report import PrefetchReport
from shoal.registry.base import parse_image
from shoal.registry.namespaces import UPSTREAMS, name_at
from shoal.web.rendering import error_for
from shoal.web.requests import deadline_of, read_json

MAX_PLATFORMS = 20
"""Platforms that one request may choose."""


class KrakenRequest(msgspec.Struct):
    """The body of Kraken's request."""

    tag: str
    """``host/repository:tag``; the host may be left out."""

    trace_id: str = ""


class PrefetchRoutes:
    """Have an image ready on the origins."""

    def __init__(self, prefetch: Prefetch) -> None:
        self._prefetch = prefetch

    def add_to(self, app: web.Application) -> None:
        """Add the routes to an application that serves the registry API, too."""
        app.router.add_post("/prefetch/{image:.+}", self.image)
        # Its first version had the proxy fetch each blob, its second one the origins.
        for version in ("v1", "v2"):
            app.router.add_post(f"/proxy/{version}/registry/prefetch", self.kraken)

    async def image(self, request: web.Request) -> web.Response:
        """``POST /prefetch/{image}?platform=``: 200 when all is there, 202 when some comes."""
        texts = request.query.getall("platform", ())
        if len(texts) > MAX_PLATFORMS:
            raise BadRequest(f"{len(texts)} platforms; at most {MAX_PLATFORMS} are taken at once")
        try:
            platforms = [Platform.parse(text) for text in texts]
        except InvalidPlatform as error:
            raise BadRequest(str(error)) from error
        report = await self._begin(request, request.match_info["image"], platforms)
        return _json(report, 200 if report.ready else 202)

    async def kraken(self, request: web.Request) -> web.Response:
        """``POST /proxy/v2/registry/prefetch``: the same for all platforms."""
        asked = KrakenRequest("")
        try:
            asked = await read_json(request, KrakenRequest)
            report = await self._begin(request, asked.tag, [])
        except Exception as raised:  # noqa: BLE001 every answer has the form that its callers read
            return _failure(error_for(request, raised), asked)
        coming = (
            f"{report.coming} of {report.contents} blobs and manifests ({report.coming_size} "
            "bytes) are being fetched to the origins"
        )
        answer = {
            "tag": asked.tag,
            "prefetched": True,
            "status": "success",
            "message": "everything is on the origins" if report.ready else coming,
            "trace_id": _trace(asked),
        }
        return _json(answer, 200)

    async def _begin(
        self, request: web.Request, image: str, platforms: list[Platform]
    ) -> PrefetchReport:
        repository, reference = _image(request, image)
        return await self._prefetch.image(
            repository, reference, deadline_of(request), platforms=platforms
        )


def _image(request: web.Request, text: str) -> tuple[str, Digest | str]:
    """What an image is called in this cluster; the host before it may be this registry's."""
    host, named = split_host(text)
    repository, reference = parse_image(named)
    return name_at(request.app[UPSTREAMS], host, repository, here=request.host), reference


def _failure(error: ApiError, asked: KrakenRequest) -> web.Response:
    answer = {
        "tag": asked.tag,
        "prefetched": False,
        "status": "failure",
        "error": error.code,
        "message": error.message,
        "trace_id": _trace(asked),
    }
    response = _json(answer, error.status)
    response.headers.update(error.headers)
    return response


def _trace(asked: KrakenRequest) -> str:
    return asked.trace_id or uuid.uuid4().hex


def _json(answer: Any, status: int) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(answer), content_type="application/json"
    )
