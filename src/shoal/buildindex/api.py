# SPDX-License-Identifier: Apache-2.0
"""HTTP API of the build-index: translates requests, and nothing else.

A tag stands in the path as ``repository:tag``, escaped (``library%2Fapp:v1``); slashes that are not
escaped are taken, too.
"""

from __future__ import annotations

from typing import cast, get_args

import msgspec
from aiohttp import web

from shoal.buildindex.records import MAX_BATCH, Batch
from shoal.buildindex.service import BuildIndex
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest, DigestInvalid, NameInvalid, TagInvalid
from shoal.model.manifest import MAX_MANIFEST_BYTES, IndexChildren
from shoal.model.names import InvalidName, InvalidTag, repository_name, split_tag
from shoal.web.callers import while_connected
from shoal.web.requests import deadline_of, read_body, read_json


class Api:
    """The routes of one build-index."""

    def __init__(self, index: BuildIndex) -> None:
        self._index = index

    def add_routes(self, app: web.Application) -> None:
        """Register every route."""
        app.add_routes(
            [
                web.put("/tags/{tag:.+}/digest/{digest}", self.put_tag),
                web.get("/tags/{tag:.+}", self.get_tag),
                web.post("/manifests/{repository:.+}/{digest}/check", self.check),
                web.get("/repositories", self.repositories),
                web.get("/repositories/{repository:.+}/tags", self.tags),
                web.get("/internal/changes", self.changes),
                web.put("/internal/tags", self.accept),
            ]
        )

    async def put_tag(self, request: web.Request) -> web.Response:
        """``PUT /tags/{repository:tag}/digest/{digest}?replicate=&index_children=``.

        The body is the manifest, or empty. ``replicate`` is ``true`` or ``false``; there are no
        other clusters to replicate to, and the neighbours always get the tag, so both do the same.
        """
        repository, tag = _tag(request)
        _choice(request, "replicate", ("true", "false"))
        record = await while_connected(
            request,
            self._index.put_tag(
                repository,
                tag,
                _digest(request),
                await _manifest(request),
                request.headers.get("Content-Type"),
                deadline=deadline_of(request),
                index_children=_index_children(request),
            ),
        )
        return _json(record)

    async def get_tag(self, request: web.Request) -> web.Response:
        """``GET /tags/{repository:tag}``: the digest as text."""
        record = await self._index.get_tag(*_tag(request))
        return web.Response(text=record.digest, headers={"Docker-Content-Digest": record.digest})

    async def check(self, request: web.Request) -> web.Response:
        """``POST /manifests/{repository}/{digest}/check?index_children=``.

        The body is the manifest, or empty.
        """
        dependencies = await while_connected(
            request,
            self._index.check(
                _repository(request),
                _digest(request),
                await _manifest(request),
                request.headers.get("Content-Type"),
                deadline=deadline_of(request),
                index_children=_index_children(request),
            ),
        )
        return _json({"dependencies": dependencies})

    async def tags(self, request: web.Request) -> web.Response:
        """``GET /repositories/{repository}/tags?n=&last=``."""
        page = await self._index.tags(
            _repository(request), request.query.get("last", ""), _number(request, "n")
        )
        return _json({"tags": page.names, "more": page.more})

    async def repositories(self, request: web.Request) -> web.Response:
        """``GET /repositories?n=&last=``."""
        page = await self._index.repositories(request.query.get("last", ""), _number(request, "n"))
        return _json({"repositories": page.names, "more": page.more})

    async def changes(self, request: web.Request) -> web.Response:
        """``GET /internal/changes?after=&limit=``, asked by neighbours."""
        after = max(0, _number(request, "after") or 0)
        limit = _number(request, "limit")
        limit = MAX_BATCH if limit is None else max(1, min(limit, MAX_BATCH))
        return _json(await self._index.changes(after, limit))

    async def accept(self, request: web.Request) -> web.Response:
        """``PUT /internal/tags``: records of a neighbour."""
        batch = await read_json(request, Batch)
        await self._index.accept(batch.records)
        return _json({"accepted": len(batch.records)})


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def _manifest(request: web.Request) -> bytes | None:
    return await read_body(request, MAX_MANIFEST_BYTES) or None


def _tag(request: web.Request) -> tuple[str, str]:
    try:
        return split_tag(request.match_info["tag"])
    except InvalidName as error:
        raise NameInvalid(str(error)) from error
    except InvalidTag as error:
        raise TagInvalid(str(error)) from error


def _repository(request: web.Request) -> str:
    try:
        return repository_name(request.match_info["repository"])
    except InvalidName as error:
        raise NameInvalid(str(error)) from error


def _digest(request: web.Request) -> Digest:
    try:
        return Digest.parse(request.match_info["digest"])
    except InvalidDigest as error:
        raise DigestInvalid(str(error)) from error


def _index_children(request: web.Request) -> IndexChildren | None:
    return cast("IndexChildren | None", _choice(request, "index_children", _INDEX_CHILDREN))


_INDEX_CHILDREN: tuple[str, ...] = get_args(IndexChildren)


def _choice(request: web.Request, name: str, known: tuple[str, ...]) -> str | None:
    given = request.query.getall(name, [])
    if len(given) > 1:
        raise BadRequest(f"{name} is given {len(given)} times")
    if given and given[0] not in known:
        raise BadRequest(f"{name} must be one of {', '.join(known)}, got {given[0][:40]!r}")
    return given[0] if given else None


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise BadRequest(f"{name} must be a whole number, got {text[:40]!r}")
    return int(text)
