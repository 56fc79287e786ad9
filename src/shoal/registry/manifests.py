# SPDX-License-Identifier: Apache-2.0
"""``/v2/<name>/manifests/<reference>``: manifests by tag or digest (OCI distribution-spec)."""

from __future__ import annotations

from typing import cast, get_args

from aiohttp import web

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest, DigestInvalid, ManifestUnknown, TagInvalid
from shoal.model.manifest import (
    MAX_MANIFEST_BYTES,
    IndexChildren,
    InvalidManifest,
    parse_manifest,
)
from shoal.model.names import InvalidTag, reference
from shoal.registry.base import bare, content_headers, repository
from shoal.registry.ports import Reader, Writer
from shoal.store.threads import in_thread
from shoal.web.conditions import not_modified
from shoal.web.requests import deadline_of, read_body


class Manifests:
    """Reads manifests. They are served as they were pushed: nothing is ever converted.

    A type that Accept leaves out is served all the same, as the other registries do: the client
    asked for exactly this content, and a 406 would break more pulls than it would protect.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def get(self, request: web.Request) -> web.StreamResponse:
        name, deadline = repository(request), deadline_of(request)
        try:
            wanted = reference(request.match_info["reference"])
        except InvalidDigest as error:
            raise DigestInvalid(str(error)) from error
        except InvalidTag as error:
            # No manifest can have this name, so reading answers as for any tag that is not there.
            raise ManifestUnknown(str(error)) from error
        if isinstance(wanted, str):
            wanted = await self._reader.resolve(name, wanted, deadline)
        body = await self._reader.manifest(name, wanted, deadline)
        headers = content_headers(wanted, len(body), await _media_type(name, wanted, body))
        if not_modified(request, headers["ETag"]):
            return web.Response(status=304, headers=bare(headers))
        return web.Response(headers=headers, body=body)


class ManifestWriter:
    """Takes manifests in, byte for byte."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def put(self, request: web.Request) -> web.StreamResponse:
        name = repository(request)
        try:
            target = reference(request.match_info["reference"])
        except InvalidDigest as error:
            raise DigestInvalid(str(error)) from error
        except InvalidTag as error:
            raise TagInvalid(str(error)) from error
        body = await read_body(request, MAX_MANIFEST_BYTES)
        digest = await self._writer.put_manifest(
            name,
            target,
            body,
            request.headers.get("Content-Type"),
            deadline_of(request),
            index_children=_index_children(request),
        )
        headers = {
            "Location": f"/v2/{name}/manifests/{target}",
            "Docker-Content-Digest": str(digest),
        }
        return web.Response(status=201, headers=headers)


def _index_children(request: web.Request) -> IndexChildren | None:
    """Shoal's own parameter, for indexes whose children live elsewhere; clients do not send it."""
    text = request.query.get("index_children")
    if text is not None and text not in get_args(IndexChildren):
        accepted = ", ".join(get_args(IndexChildren))
        raise BadRequest(f"index_children is {text[:40]!r}; it is one of {accepted}")
    return cast("IndexChildren | None", text)


async def _media_type(name: str, digest: Digest, body: bytes) -> str:
    # Threads cost more than parsing an ordinary manifest, and 4 MiB of JSON would hold up the loop.
    try:
        if len(body) <= 64 * 1024:
            return parse_manifest(body).media_type
        return (await in_thread(parse_manifest, body)).media_type
    except InvalidManifest as error:
        raise ManifestUnknown(f"{digest} in {name} is a blob, not a manifest: {error}") from error
