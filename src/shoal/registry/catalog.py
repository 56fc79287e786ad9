# SPDX-License-Identifier: Apache-2.0
"""``/v2/_catalog``: all repositories (not in the OCI spec; from Docker's registry API)."""

from __future__ import annotations

from aiohttp import web

from shoal.registry.base import page, page_of
from shoal.registry.ports import Reader
from shoal.web.requests import deadline_of


class Catalog:
    """Lists repositories, page by page."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def list(self, request: web.Request) -> web.StreamResponse:
        n, last = page_of(request)
        entries = await self._reader.repositories(n + 1, last, deadline_of(request))
        return page(request, "repositories", entries, n)
