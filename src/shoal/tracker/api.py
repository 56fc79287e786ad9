# SPDX-License-Identifier: Apache-2.0
"""HTTP API of the tracker: translates requests, and nothing else."""

from __future__ import annotations

import msgspec
from aiohttp import web

from shoal.model.errors import BadRequest
from shoal.tracker.messages import AnnounceRequest, JoinRequest, LeaveRequest, MetainfoAnswer
from shoal.tracker.service import Tracker
from shoal.web.requests import deadline_of, read_json

MAX_BODY = 4 * 1024 * 1024
"""Bytes of a request; an announce of 10,000 blobs has about 1 MB."""

_ENCODER = msgspec.json.Encoder()


class Api:
    """The routes of one tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def add_routes(self, app: web.Application) -> None:
        """Register every route."""
        app.add_routes(
            [
                web.post("/join", self.join),
                web.post("/announce", self.announce),
                web.post("/leave", self.leave),
                web.get("/instance", self.instance),
                web.get("/blobs/{digest}/metainfo", self.metainfo),
                web.get("/blobs/{digest}/peers", self.peers),
            ]
        )

    async def join(self, request: web.Request) -> web.Response:
        """``POST /join``: metainfo and peers in one round trip."""
        wanted = await read_json(request, JoinRequest, limit=MAX_BODY)
        answer = await self._tracker.join(
            wanted.digest,
            wanted.peer,
            complete=wanted.complete,
            starved=wanted.starved,
            namespace=wanted.namespace,
            deadline=deadline_of(request),
        )
        return _json(answer)

    async def announce(self, request: web.Request) -> web.Response:
        """``POST /announce``: all blobs of a peer at once."""
        said = await read_json(request, AnnounceRequest, limit=MAX_BODY)
        return _json(await self._tracker.announce(said.peer, said.blobs))

    async def leave(self, request: web.Request) -> web.Response:
        """``POST /leave``."""
        said = await read_json(request, LeaveRequest, limit=MAX_BODY)
        await self._tracker.leave(said.peer_id, said.digests)
        return _json({})

    async def instance(self, _request: web.Request) -> web.Response:
        """``GET /instance``: by which peers notice that the tracker was started anew."""
        return _json(self._tracker.instance())

    async def metainfo(self, request: web.Request) -> web.Response:
        """``GET /blobs/{digest}/metainfo?namespace=&known=``: without joining."""
        known = request.query.get("known", "0")
        if not known.isascii() or not known.isdigit() or len(known) > 7:
            raise BadRequest(f"known must be a number of pieces, got {known[:40]!r}")
        encoded = await self._tracker.metainfo(
            request.match_info["digest"],
            deadline=deadline_of(request),
            namespace=request.query.get("namespace", "")[:255],
            known=int(known),
        )
        return _json(MetainfoAnswer(msgspec.Raw(encoded)))

    async def peers(self, request: web.Request) -> web.Response:
        """``GET /blobs/{digest}/peers``: for people."""
        return _json(await self._tracker.peers(request.match_info["digest"]))


def _json(value: object) -> web.Response:
    return web.Response(body=_ENCODER.encode(value), content_type="application/json")
