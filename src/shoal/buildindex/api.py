# SPDX-License-Identifier: Apache-2.0
"""HTTP API of the build-index: translates requests, and nothing else.

A repository stands in the path escaped (``library%2Fapp``), a tag of the trusted API as
``repository:tag``; slashes that are not escaped are taken, too.
"""

from __future__ import annotations

from typing import cast, get_args

import msgspec
from aiohttp import web

from shoal.buildindex.lookups import Question
from shoal.buildindex.messages import (
    MAX_QUESTIONS,
    LookupAnswer,
    LookupRequest,
    ManifestFound,
    WantedAnswer,
    WantedRequest,
)
from shoal.buildindex.records import MAX_BATCH, MAX_BATCH_BODY, Batch
from shoal.buildindex.service import BuildIndex, Looked
from shoal.config.units import parse_duration
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest, DigestInvalid, NameInvalid, TagInvalid
from shoal.model.manifest import MAX_MANIFEST_BYTES, FoundManifest, IndexChildren
from shoal.model.names import InvalidName, InvalidTag, repository_name, split_tag, tag_name
from shoal.store.threads import in_thread
from shoal.web.callers import while_connected
from shoal.web.requests import deadline_of, read_body, read_json

MAX_TAGS = 100
"""Tags that one manifest is pushed with."""

SMALL = 64 * 1024
"""Bytes up to which a body is decoded and checked where it arrives, and not in a thread."""

ANY = "any"
"""The source of a mount that may be any repository."""


class Api:
    """The routes of one build-index."""

    def __init__(self, index: BuildIndex) -> None:
        self._index = index

    def add_routes(self, app: web.Application) -> None:
        """Register every route."""
        repository = "/repositories/{repository:.+}"
        app.add_routes(
            [
                web.put("/tags/{tag:.+}/digest/{digest}", self.put_tag),
                web.get("/tags/{tag:.+}", self.get_tag),
                web.get("/repositories", self.repositories),
                web.get(repository + "/tags", self.tags),
                web.delete(repository + "/tags/{tag}", self.delete_tag),
                web.put(repository + "/manifests/{digest}", self.put_manifest),
                web.delete(repository + "/manifests/{digest}", self.delete_manifest),
                web.put(repository + "/blobs/{digest}", self.put_blob),
                web.delete(repository + "/blobs/{digest}", self.delete_blob),
                web.get(repository + "/referrers/{digest}", self.referrers),
                web.post("/internal/lookup", self.lookup),
                web.post("/internal/wanted", self.wanted),
                web.post("/internal/gc", self.gc),
                web.get("/internal/changes", self.changes),
                web.put("/internal/records", self.accept),
            ]
        )

    # -- pushes -------------------------------------------------------------------------------

    async def put_tag(self, request: web.Request) -> web.Response:
        """``PUT /tags/{repository:tag}/digest/{digest}?replicate=&index_children=``.

        The body is the manifest, or empty. ``replicate`` is ``true`` or ``false``; there are no
        other clusters to replicate to, and the neighbours always get the tag, so both do the same.
        """
        repository, tag = _repository_and_tag(request)
        _choice(request, "replicate", _BOOLEANS)
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

    async def put_manifest(self, request: web.Request) -> web.Response:
        """``PUT /repositories/{repository}/manifests/{digest}?tag=&tag=&index_children=``.

        The body is the manifest, or empty.
        """
        digest = _digest(request)
        await while_connected(
            request,
            self._index.put_manifest(
                _repository(request),
                digest,
                await _manifest(request),
                request.headers.get("Content-Type"),
                tags=_tags(request),
                deadline=deadline_of(request),
                index_children=_index_children(request),
            ),
        )
        return web.Response(status=201, headers={"Docker-Content-Digest": str(digest)})

    async def put_blob(self, request: web.Request) -> web.Response:
        """``PUT /repositories/{repository}/blobs/{digest}?mount=any`` or ``?from=``."""
        repository, digest = _repository(request), _digest(request)
        anywhere = _choice(request, "mount", (ANY,)) == ANY
        sources = request.query.getall("from", [])
        if len(sources) + anywhere > 1:
            raise BadRequest("a blob is mounted from one repository: mount or from, once")
        if anywhere or sources:
            source = None if anywhere else _name(sources[0])
            await self._index.mount(repository, digest, source)
        else:
            await self._index.link(repository, digest)
        return web.Response(status=201)

    # -- deletions ----------------------------------------------------------------------------

    async def delete_tag(self, request: web.Request) -> web.Response:
        """``DELETE /repositories/{repository}/tags/{tag}``."""
        await self._index.delete_tag(_repository(request), _tag(request.match_info["tag"]))
        return web.Response(status=202)

    async def delete_manifest(self, request: web.Request) -> web.Response:
        """``DELETE /repositories/{repository}/manifests/{digest}``: and the tags that have it."""
        await self._index.delete_manifest(_repository(request), _digest(request))
        return web.Response(status=202)

    async def delete_blob(self, request: web.Request) -> web.Response:
        """``DELETE /repositories/{repository}/blobs/{digest}``."""
        await self._index.delete_blob(_repository(request), _digest(request))
        return web.Response(status=202)

    async def gc(self, request: web.Request) -> web.Response:
        """``POST /internal/gc?dry_run=&grace=``: collect garbage now; the report."""
        dry_run = _choice(request, "dry_run", _BOOLEANS) == "true"
        collecting = self._index.collect(dry_run=dry_run, grace=_duration(request, "grace"))
        return _json(await while_connected(request, collecting))

    # -- reads --------------------------------------------------------------------------------

    async def get_tag(self, request: web.Request) -> web.Response:
        """``GET /tags/{repository:tag}``: the digest as text."""
        digest = await while_connected(
            request,
            self._index.get_tag(*_repository_and_tag(request), deadline=deadline_of(request)),
        )
        return web.Response(text=digest, headers={"Docker-Content-Digest": digest})

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

    async def referrers(self, request: web.Request) -> web.Response:
        """``GET /repositories/{repository}/referrers/{digest}?artifact_type=&n=&last=``."""
        page = await self._index.referrers(
            _repository(request),
            _digest(request),
            request.query.get("artifact_type"),
            request.query.get("last", ""),
            _number(request, "n"),
        )
        return await _large_json(page)

    async def lookup(self, request: web.Request) -> web.Response:
        """``POST /internal/lookup``: `LookupRequest`."""
        asked = await read_json(request, LookupRequest)
        if len(asked.manifests) + len(asked.blobs) > MAX_QUESTIONS:
            raise BadRequest(
                f"{len(asked.manifests)} manifests and {len(asked.blobs)} blobs are asked for; at "
                f"most {MAX_QUESTIONS} together are answered at once"
            )
        looked = await while_connected(
            request,
            self._index.lookup(
                asked.manifests,
                asked.blobs,
                rely=asked.rely,
                deadline=deadline_of(request) if asked.through else None,
            ),
        )
        return _json(_lookup_answer(asked, looked))

    async def wanted(self, request: web.Request) -> web.Response:
        """``POST /internal/wanted``: `WantedRequest`."""
        asked = await read_json(request, WantedRequest)
        return _json(WantedAnswer(await self._index.wanted(asked.digests)))

    # -- neighbours ---------------------------------------------------------------------------

    async def changes(self, request: web.Request) -> web.Response:
        """``GET /internal/changes?after=&limit=``, asked by neighbours."""
        after = max(0, _number(request, "after") or 0)
        limit = _number(request, "limit")
        limit = MAX_BATCH if limit is None else max(1, min(limit, MAX_BATCH))
        return await _large_json(await self._index.changes(after, limit))

    async def accept(self, request: web.Request) -> web.Response:
        """``PUT /internal/records``: records of a neighbour."""
        body = await read_body(request, MAX_BATCH_BODY)
        batch = _batch(body) if len(body) <= SMALL else await in_thread(_batch, body)
        await self._index.accept(batch.records)
        return _json({"accepted": len(batch.records)})


_BOOLEANS = ("true", "false")


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def _large_json(value: object) -> web.Response:
    body = await in_thread(msgspec.json.encode, value)
    return web.Response(body=body, content_type="application/json")


def _batch(body: bytes) -> Batch:
    try:
        return msgspec.json.decode(body, type=Batch)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"not records of a neighbour: {error}") from error


def _lookup_answer(asked: LookupRequest, looked: Looked) -> LookupAnswer:
    open_ = set(looked.open)
    return LookupAnswer(
        [_found(manifest) for manifest in looked.manifests],
        looked.blobs,
        [n for n, pair in enumerate(asked.manifests) if Question("manifest", *pair) in open_],
        [n for n, pair in enumerate(asked.blobs) if Question("blob", *pair) in open_],
    )


def _found(manifest: FoundManifest | None) -> ManifestFound | None:
    if manifest is None:
        return None
    return ManifestFound(str(manifest.digest), manifest.media_type, manifest.size)


async def _manifest(request: web.Request) -> bytes | None:
    return await read_body(request, MAX_MANIFEST_BYTES) or None


def _repository_and_tag(request: web.Request) -> tuple[str, str]:
    try:
        return split_tag(request.match_info["tag"])
    except InvalidName as error:
        raise NameInvalid(str(error)) from error
    except InvalidTag as error:
        raise TagInvalid(str(error)) from error


def _repository(request: web.Request) -> str:
    return _name(request.match_info["repository"])


def _name(text: str) -> str:
    try:
        return repository_name(text)
    except InvalidName as error:
        raise NameInvalid(str(error)) from error


def _tag(text: str) -> str:
    try:
        return tag_name(text)
    except InvalidTag as error:
        raise TagInvalid(str(error)) from error


def _tags(request: web.Request) -> list[str]:
    tags = list(dict.fromkeys(map(_tag, request.query.getall("tag", []))))
    if len(tags) > MAX_TAGS:
        raise BadRequest(f"{len(tags)} tags are given; a manifest is taken with {MAX_TAGS} at most")
    return tags


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


def _duration(request: web.Request, name: str) -> float | None:
    """Seconds, if the caller gave any."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise BadRequest(f"{name}: {error}, got {text[:40]!r}") from error
