# SPDX-License-Identifier: Apache-2.0
"""``/v2/<name>/blobs/<digest>``: blobs (OCI distribution-spec, "Pulling" and "Deleting blobs")."""

from __future__ import annotations

from aiohttp import web

from shoal.model.errors import Unsupported
from shoal.registry.base import bare, content_headers, parse_digest, repository
from shoal.registry.namespaces import internal_repository
from shoal.registry.ports import Reader, Writer
from shoal.web.bodies import send_blob
from shoal.web.conditions import not_modified
from shoal.web.requests import deadline_of

OCTETS = "application/octet-stream"


class Blobs:
    """Reads blobs. They are sent as they are stored, whatever Accept-Encoding says."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def head(self, request: web.Request) -> web.StreamResponse:
        name, digest = internal_repository(request), parse_digest(request.match_info["digest"])
        size = await self._reader.stat_blob(name, digest, deadline_of(request))
        headers = content_headers(digest, size, OCTETS)
        if not_modified(request, headers["ETag"]):
            return web.Response(status=304, headers=bare(headers))
        return web.Response(headers={**headers, "Accept-Ranges": "bytes"})

    async def get(self, request: web.Request) -> web.StreamResponse:
        name, digest = internal_repository(request), parse_digest(request.match_info["digest"])
        blob = await self._reader.open_blob(name, digest, deadline_of(request))
        return await send_blob(request, blob, digest=digest, content_type=OCTETS)


class BlobWriter:
    """Removes blobs. They come in as uploads (`shoal.registry.uploads`)."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def delete(self, request: web.Request) -> web.StreamResponse:
        name, digest = repository(request), parse_digest(request.match_info["digest"])
        try:
            await self._writer.delete_blob(name, digest, deadline_of(request))
        except Unsupported as error:
            error.headers["Allow"] = "GET, HEAD"
            raise
        return web.Response(status=202)
