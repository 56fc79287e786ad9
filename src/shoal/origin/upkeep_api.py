# SPDX-License-Identifier: Apache-2.0
"""HTTP routes of repair and status: for the other origins, and for ``shoal origin status``."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from aiohttp import web

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest, DigestInvalid
from shoal.origin.messages import StatAnswer
from shoal.origin.repair_peers import HOLDING, REPAIR, HoldRequest, RepairRequest
from shoal.origin.upkeep import Upkeep
from shoal.web.requests import read_json

STATUS = "/internal/status"


class UpkeepRoutes:
    """They answer for this host alone."""

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get(STATUS, self.status)
        router.add_post(REPAIR, self.repair)
        router.add_post(HOLDING, self.hold)

    async def status(self, _: web.Request) -> web.Response:
        return _json(await self._upkeep.status())

    async def repair(self, request: web.Request) -> web.Response:
        """``POST /internal/repair``: look now; for all, or for the member that the body names."""
        asked = RepairRequest()
        if request.can_read_body:
            asked = await read_json(request, RepairRequest)
        members: Collection[str] = (await self._upkeep.status()).members
        if asked.lacking is not None and asked.lacking not in members:
            raise BadRequest(f"{asked.lacking} is not a member: {', '.join(members)}")
        self._upkeep.look(asked.lacking)
        return web.Response(status=202)

    async def hold(self, request: web.Request) -> web.Response:
        asked = await read_json(request, HoldRequest)
        try:
            digests = [Digest.parse(text) for text in asked.digests]
        except InvalidDigest as error:
            raise DigestInvalid(str(error)) from error
        sizes = await self._upkeep.hold(digests, kept=asked.kept, unbacked=asked.unbacked)
        return _json(StatAnswer({str(digest): size for digest, size in sizes.items()}))


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
