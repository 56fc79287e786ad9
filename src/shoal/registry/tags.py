# SPDX-License-Identifier: Apache-2.0
"""``/v2/<name>/tags/list``: the tags of a repository (OCI distribution-spec, "Listing tags")."""

from __future__ import annotations

from aiohttp import web

from shoal.registry.base import page, page_of, repository
from shoal.registry.namespaces import internal_repository
from shoal.registry.ports import Reader
from shoal.web.requests import deadline_of


class Tags:
    """Lists tags, page by page."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def list(self, request: web.Request) -> web.StreamResponse:
        name, (n, last) = internal_repository(request), page_of(request)
        entries = await self._reader.tags(name, n + 1, last, deadline_of(request))
        return page(request, "tags", entries, n, name=repository(request))
