# SPDX-License-Identifier: Apache-2.0
"""``/v2/<name>/manifests/<reference>``: manifests by tag or digest (OCI distribution-spec)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import cast, get_args

from aiohttp import web
from multidict import CIMultiDict

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest, DigestInvalid, ManifestUnknown, TagInvalid
from shoal.model.manifest import MAX_MANIFEST_BYTES, FoundManifest, IndexChildren
from shoal.model.names import InvalidTag, reference, tag_name
from shoal.registry.base import bare, content_headers, repository
from shoal.registry.headers import SUBJECT, TAG, add_warnings
from shoal.registry.namespaces import internal_repository
from shoal.registry.ports import Reader, Writer
from shoal.web.conditions import not_modified
from shoal.web.deadline import Deadline
from shoal.web.requests import deadline_of, read_body

MAX_TAGS = 64
"""Tags that one PUT may set; the spec asks for ten at least."""


_Find = Callable[[str, Digest | str, Deadline], Awaitable[FoundManifest]]


class Manifests:
    """Reads manifests. They are served as they were pushed: nothing is ever converted.

    A type that Accept leaves out is served all the same, as the other registries do: the client
    asked for exactly this content, and a 406 would break more pulls than it would protect.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def head(self, request: web.Request) -> web.StreamResponse:
        """Describe a manifest; its content is not read."""
        _, headers = await self._find(request, self._reader.stat_manifest)
        if not_modified(request, headers["ETag"]):
            return web.Response(status=304, headers=bare(headers))
        return web.Response(headers=headers)

    async def get(self, request: web.Request) -> web.StreamResponse:
        found, headers = await self._find(request, self._reader.find_manifest)
        if not_modified(request, headers["ETag"]):
            return web.Response(status=304, headers=bare(headers))
        body = await self._reader.manifest(
            internal_repository(request), found, deadline_of(request)
        )
        return web.Response(headers=headers, body=body)

    async def _find(
        self, request: web.Request, find: _Find
    ) -> tuple[FoundManifest, Mapping[str, str]]:
        name, wanted = internal_repository(request), _existing(request)
        found = await find(name, wanted, deadline_of(request))
        if not found.media_type:
            raise ManifestUnknown(
                f"the tag {wanted} of {name} points to {found.digest}, which is no manifest of it",
                detail={"reference": str(wanted), "digest": str(found.digest)},
            )
        return found, content_headers(found.digest, found.size, found.media_type)


class ManifestWriter:
    """Takes manifests in, byte for byte, and removes them."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def put(self, request: web.Request) -> web.StreamResponse:
        name = repository(request)
        target = _new(request)
        tags = _tags(request, target)
        body = await read_body(request, MAX_MANIFEST_BYTES)
        stored = await self._writer.put_manifest(
            name,
            target,
            body,
            request.headers.get("Content-Type"),
            deadline_of(request),
            tags=tags,
            index_children=_index_children(request),
        )
        headers = CIMultiDict(
            {
                "Location": f"/v2/{name}/manifests/{target}",
                "Docker-Content-Digest": str(stored.digest),
            }
        )
        if stored.subject is not None:
            headers[SUBJECT] = str(stored.subject)
        for tag in stored.tags:
            headers.add(TAG, tag)
        add_warnings(headers, stored.warnings)
        return web.Response(status=201, headers=headers)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Remove a tag, or a manifest and all tags that name it."""
        name, target, deadline = repository(request), _existing(request), deadline_of(request)
        if isinstance(target, Digest):
            await self._writer.delete_manifest(name, target, deadline)
        else:
            await self._writer.delete_tag(name, target, deadline)
        return web.Response(status=202)


def _existing(request: web.Request) -> Digest | str:
    """Return the reference of the path to something that is to be there."""
    try:
        return reference(request.match_info["reference"])
    except InvalidDigest as error:
        raise DigestInvalid(str(error)) from error
    except InvalidTag as error:
        # No manifest can have this name, so the answer is that of any tag that is not there.
        raise ManifestUnknown(str(error)) from error


def _new(request: web.Request) -> Digest | str:
    """Return the reference of the path to something that is to be made."""
    try:
        return reference(request.match_info["reference"])
    except InvalidDigest as error:
        raise DigestInvalid(str(error)) from error
    except InvalidTag as error:
        raise TagInvalid(str(error)) from error


class TooManyTags(BadRequest):
    """414: more tags in one query than are taken (distribution-spec, "Pushing Manifests")."""

    status = 414


def _tags(request: web.Request, target: Digest | str) -> tuple[str, ...]:
    """Return the tags of the query, each once; they name the manifest beside its digest."""
    tags = tuple(dict.fromkeys(request.query.getall("tag", ())))
    if tags and isinstance(target, str):
        raise BadRequest("?tag= adds tags to a manifest that is pushed by its digest, not by a tag")
    if len(tags) > MAX_TAGS:
        raise TooManyTags(f"the query gives {len(tags)} tags; at most {MAX_TAGS} are taken at once")
    try:
        return tuple(map(tag_name, tags))
    except InvalidTag as error:
        raise TagInvalid(str(error)) from error


def _index_children(request: web.Request) -> IndexChildren | None:
    """Shoal's own parameter, for indexes whose children live elsewhere; clients do not send it."""
    text = request.query.get("index_children")
    if text is not None and text not in get_args(IndexChildren):
        accepted = ", ".join(get_args(IndexChildren))
        raise BadRequest(f"index_children is {text[:40]!r}; it is one of {accepted}")
    return cast("IndexChildren | None", text)
