# SPDX-License-Identifier: Apache-2.0
"""``/v2/<name>/referrers/<digest>``: what refers to a manifest (OCI distribution-spec)."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from shoal.model.digest import Digest
from shoal.model.manifest import LARGE_REFERRERS, Referrer
from shoal.model.media_types import OCI_INDEX
from shoal.registry.base import next_link, page_of, parameter, parse_digest
from shoal.registry.headers import FILTERS_APPLIED
from shoal.registry.namespaces import internal_repository
from shoal.registry.ports import Reader
from shoal.web.deadline import Deadline
from shoal.web.requests import deadline_of

PAGE_BYTES = LARGE_REFERRERS
"""A page ends at about this many bytes: clients take a list of 4 MiB, and annotations can be as
large as a manifest. A page has one entry at least."""

_FIRST_BATCH = 16
"""Entries asked for before it is known how large they are."""


class Referrers:
    """Lists the manifests that have a given subject, page by page, as an index.

    The list is empty for a subject that nobody refers to, or that is not there: it is never a 404,
    upon which clients would fall back to tags.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def get(self, request: web.Request) -> web.StreamResponse:
        name, subject = internal_repository(request), parse_digest(request.match_info["digest"])
        wanted = parameter(request, "artifactType") or None
        n, last = page_of(request)
        if last:
            parse_digest(last)
        entries, more = await self._page(name, subject, wanted, n, last, deadline_of(request))
        headers = {"Content-Type": OCI_INDEX}
        if wanted is not None:
            headers[FILTERS_APPLIED] = "artifactType"
        if more:
            headers["Link"] = next_link(request, n, str(entries[-1].digest))
        document = b'{"schemaVersion":2,"mediaType":"%b","manifests":[%b]}' % (
            OCI_INDEX.encode(),
            b",".join(map(_encoded, entries)),
        )
        return web.Response(body=document, headers=headers)

    async def _page(  # noqa: PLR0917 -- as the port has them
        self,
        name: str,
        subject: Digest,
        wanted: str | None,
        n: int,
        last: str,
        deadline: Deadline,
    ) -> tuple[list[Referrer], bool]:
        """Return the entries of a page and whether more follow.

        They are asked for in batches, which the reader ends where they are large, so that no more
        is held than a few times what a page takes.
        """
        entries: list[Referrer] = []
        used, batch = 0, _FIRST_BATCH
        while len(entries) < n:
            ask = min(batch, n + 1 - len(entries))
            found = await self._reader.referrers(name, subject, wanted, ask, last, deadline)
            for entry in found:
                size = len(_encoded(entry))
                if entries and (len(entries) == n or used + size > PAGE_BYTES):
                    return entries, True
                entries.append(entry)
                used += size
            if not found or (len(found) < ask and used < PAGE_BYTES):
                return entries, False
            last = str(entries[-1].digest)
            batch = max(1, min(n, (PAGE_BYTES - used) * len(entries) // used))
        return entries, bool(
            entries and await self._reader.referrers(name, subject, wanted, 1, last, deadline)
        )


def _encoded(entry: Referrer) -> bytes:
    document: dict[str, Any] = {
        "mediaType": entry.media_type,
        "digest": str(entry.digest),
        "size": entry.size,
    }
    if entry.artifact_type:
        document["artifactType"] = entry.artifact_type
    if entry.annotations:
        document["annotations"] = dict(entry.annotations)
    return msgspec.json.encode(document)
