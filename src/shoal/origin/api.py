# SPDX-License-Identifier: Apache-2.0
"""The origin's HTTP API: translates between requests and the service, and decides nothing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import msgspec
from aiohttp import web

from shoal.config.units import parse_duration
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import (
    BadRequest,
    BlobUploadInvalid,
    DigestInvalid,
    NameInvalid,
    Unsupported,
)
from shoal.model.names import InvalidName, repository_name
from shoal.origin.members import OWED
from shoal.origin.messages import (
    MAX_NAMESPACES,
    LocationsAnswer,
    MetainfoAnswer,
    OwedAnswer,
    OwedRequest,
    ReplicateAnswer,
    ReplicateRequest,
    SizeAnswer,
    StatAnswer,
    StatRequest,
    SweepRequest,
)
from shoal.origin.prefetch import Prefetcher
from shoal.origin.refresh import Refresh
from shoal.origin.service import OriginService
from shoal.origin.sweep import Sweeper
from shoal.origin.uploads import ChunkedUploads
from shoal.swarm.peers import PeerInfo
from shoal.web.bodies import send_blob
from shoal.web.requests import deadline_of, read_json
from shoal.web.server import application

MAX_SWEEP_REQUEST = 16 * 1024 * 1024
"""Bytes of what a sweep is told."""

_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d{1,18}|\*))?", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)


def origin_application(
    service: OriginService,
    uploads: ChunkedUploads,
    refresh: Refresh,
    peer: PeerInfo,
    sweeper: Sweeper | None,
    *,
    prefetcher: Prefetcher,
    readiness: Callable[[], Awaitable[list[str]]],
    request_timeout: float,
) -> web.Application:
    """The application of one origin; `request_timeout` (seconds) is for callers that name none.

    Without `sweeper`, the config names no build-index, and no blob is ever removed.
    """
    app = application("origin", readiness=readiness, request_timeout=request_timeout)
    _Public(service, uploads).add_to(app.router)
    _Internal(service, refresh, prefetcher, peer, sweeper).add_to(app.router)
    return app


class _Public:
    """Paths as in Kraken. They answer for all origins, whichever is asked."""

    def __init__(self, service: OriginService, uploads: ChunkedUploads) -> None:
        self._service = service
        self._uploads = uploads

    def add_to(self, router: web.UrlDispatcher) -> None:
        # A namespace may hold slashes, plain or (as Kraken's clients send it) escaped.
        blob = "/namespace/{namespace:.+}/blobs/{digest}"
        router.add_post(f"{blob}/uploads", self.start)
        router.add_patch(f"{blob}/uploads/{{upload}}", self.append)
        router.add_put(f"{blob}/uploads/{{upload}}", self.finish)
        router.add_get(blob, self.get)
        router.add_put(blob, self.put)
        router.add_post(f"{blob}/prefetch", self.prefetch)
        router.add_get("/blobs/{digest}/locations", self.locations)

    async def get(self, request: web.Request) -> web.StreamResponse:
        digest = _digest(request)
        blob = await self._service.open(digest, _namespace(request), deadline_of(request))
        return await send_blob(request, blob, digest=digest)

    async def put(self, request: web.Request) -> web.Response:
        digest, namespace = _digest(request), _namespace(request)
        await self._service.upload(
            digest,
            _body(request),
            request.content_length,
            _budget(request),
            namespace=namespace,
            through=_flag(request, "through"),
        )
        return _created(digest)

    async def start(self, request: web.Request) -> web.Response:
        _digest(request)
        upload = await self._uploads.start(_namespace(request))
        return web.Response(
            status=202, headers={"Location": f"{request.rel_url.raw_path}/{upload}"}
        )

    async def append(self, request: web.Request) -> web.Response:
        _namespace(request)
        digest, upload = _digest(request), request.match_info["upload"]
        span = _content_range(request)
        start = None if span is None else span[0]
        size = await self._uploads.append(upload, digest, _body(request), start)
        headers = {"Location": request.rel_url.raw_path, "Range": f"0-{max(0, size - 1)}"}
        return web.Response(status=202, headers=headers)

    async def finish(self, request: web.Request) -> web.Response:
        namespace = _namespace(request)
        digest, upload = _digest(request), request.match_info["upload"]
        await self._uploads.finish(
            upload,
            digest,
            _body(request),
            _budget(request),
            namespace=namespace,
            through=_flag(request, "through"),
        )
        return _created(digest)

    async def prefetch(self, request: web.Request) -> web.Response:
        """200: an origin has it; 202: it is being fetched from the namespace's backend."""
        digest, namespace = _digest(request), _namespace(request)
        answer = await self._service.prefetch(digest, namespace, deadline_of(request))
        response = _json(answer)
        response.set_status(200 if answer.ready else 202)
        return response

    async def locations(self, request: web.Request) -> web.Response:
        owners = self._service.owners(_digest(request))
        response = _json(LocationsAnswer(owners))
        response.headers["Origin-Locations"] = ",".join(owners)
        return response


class _Internal:
    """Paths for other services of the cluster. They answer for this host alone."""

    def __init__(
        self,
        service: OriginService,
        refresh: Refresh,
        prefetcher: Prefetcher,
        peer: PeerInfo,
        sweeper: Sweeper | None,
    ) -> None:
        self._service = service
        self._refresh = refresh
        self._prefetcher = prefetcher
        self._peer = peer
        self._sweeper = sweeper

    def add_to(self, router: web.UrlDispatcher) -> None:
        blob = "/internal/blobs/{digest}"
        router.add_post("/internal/blobs/stat", self.stat)
        router.add_get(f"{blob}/metainfo", self.metainfo)
        router.add_post(f"{blob}/replicate", self.replicate)
        router.add_post(f"{blob}/refresh", self.refresh)
        router.add_post(f"{blob}/prefetch", self.prefetch)
        router.add_post(f"{blob}/writeback", self.writeback)
        router.add_get(f"{blob}/backend", self.stat_backend)
        router.add_post(OWED, self.owed)
        router.add_get("/internal/push-check", self.check_push)
        router.add_get(blob, self.get)
        router.add_put(blob, self.put)
        router.add_get("/internal/peer", self.peer)
        router.add_post("/internal/gc", self.gc)

    async def get(self, request: web.Request) -> web.StreamResponse:
        digest = _digest(request)
        blob = await self._service.open_own(digest)
        return await send_blob(request, blob, digest=digest)

    async def put(self, request: web.Request) -> web.Response:
        digest = _digest(request)
        kept = _flag(request, "kept")
        size = request.content_length
        used = _epoch(request, "used")
        fresh = await self._service.store(
            digest,
            _body(request),
            size,
            kept=kept,
            used=used,
            namespaces=_namespaces(request, "namespace"),
            backed=_namespaces(request, "backed"),
            unbacked=_flag(request, "unbacked"),
        )
        return web.Response(status=201 if fresh else 200)

    async def stat(self, request: web.Request) -> web.Response:
        asked = await read_json(request, StatRequest)
        digests = [_parse_digest(text) for text in asked.digests]
        sizes = await self._service.sizes(
            digests,
            keep=asked.keep,
            kept=asked.kept,
            namespaces=_checked(asked.namespaces),
            backed=_checked(asked.backed),
            unbacked=asked.unbacked,
        )
        return _json(StatAnswer({str(digest): size for digest, size in sizes.items()}))

    async def metainfo(self, request: web.Request) -> web.Response:
        """``GET …/metainfo?known=``: of a blob still being fetched held until more is known."""
        digest = _digest(request)
        growing = self._refresh.growing(digest)
        if growing is not None:
            metainfo = await growing.beyond(_number(request, "known"))
            if metainfo.whole or not growing.ended:
                return _json(MetainfoAnswer(metainfo, self._peer))
        return _json(MetainfoAnswer(await self._service.metainfo(digest), self._peer))

    async def replicate(self, request: web.Request) -> web.Response:
        digest = _digest(request)
        asked = await read_json(request, ReplicateRequest)
        copied, failed = await self._service.replicate(digest, asked.to, deadline_of(request))
        return _json(ReplicateAnswer(copied, failed))

    async def refresh(self, request: web.Request) -> web.Response:
        """``POST …/refresh?namespace=``: have an origin fetch the blob; held until it has.

        With ``begun=true``, until it has begun to give its pieces.
        """
        size = await self._refresh.bring(
            _digest(request),
            _namespace_asked(request),
            deadline_of(request),
            led=_flag(request, "led"),
            begun=_flag(request, "begun"),
        )
        return _json(SizeAnswer(size))

    async def prefetch(self, request: web.Request) -> web.Response:
        """``POST …/prefetch?namespace=``: have this origin fetch the blob, unless one has it."""
        return _json(
            await self._prefetcher.begin(
                _digest(request), _namespace_asked(request), deadline_of(request)
            )
        )

    async def stat_backend(self, request: web.Request) -> web.Response:
        """``GET …/backend?namespace=``: the size that the repository's backend says it has."""
        size = await self._refresh.stat(
            _digest(request),
            _namespace_asked(request),
            deadline_of(request),
            led=_flag(request, "led"),
        )
        return _json(SizeAnswer(size))

    async def writeback(self, request: web.Request) -> web.Response:
        """``POST …/writeback?namespace=``: write this origin's copy to the backend now."""
        size = await self._service.settle(
            _digest(request), _namespace_asked(request), deadline_of(request)
        )
        return _json(SizeAnswer(size))

    async def owed(self, request: web.Request) -> web.Response:
        """``POST /internal/writeback/owed``: what this host is still to write to backends."""
        asked = await read_json(request, OwedRequest)
        blobs = [(_repository(name), _parse_digest(text)) for name, text in asked.asked]
        return _json(OwedAnswer(await self._service.owed(blobs)))

    async def check_push(self, request: web.Request) -> web.Response:
        """``GET /internal/push-check?namespace=``: whether a push there would be refused."""
        self._service.check_push(_namespace_asked(request))
        return web.Response()

    async def gc(self, request: web.Request) -> web.Response:
        """``POST /internal/gc?dry_run=&grace=``: sweep this origin now."""
        if self._sweeper is None:
            raise Unsupported(
                f"origin {self._service.name} cannot tell which blobs are needed: set "
                "build_index.hosts in its config to all build-indexes"
            )
        asked = SweepRequest()
        if request.can_read_body:
            asked = await read_json(request, SweepRequest, limit=MAX_SWEEP_REQUEST)
        report = await self._sweeper.sweep(
            grace=_duration(request, "grace"),
            dry_run=_flag(request, "dry_run"),
            deadline=deadline_of(request),
            released=[_parse_digest(text) for text in asked.released],
        )
        return _json(report)

    async def peer(self, _request: web.Request) -> web.Response:
        return _json(self._peer)


def _body(request: web.Request) -> AsyncIterator[bytes]:
    return request.content.iter_any()


def _budget(request: web.Request) -> float:
    """Seconds that the caller waits once its body is here: sending it is the caller's own time."""
    return deadline_of(request).remaining()


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def _created(digest: Digest) -> web.Response:
    return web.Response(status=201, headers={"Docker-Content-Digest": str(digest)})


def _digest(request: web.Request) -> Digest:
    return _parse_digest(request.match_info["digest"])


def _parse_digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise DigestInvalid(str(error)) from error


def _flag(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "false")
    if text not in {"true", "false"}:
        raise BadRequest(f"{name} must be true or false, got {text[:40]!r}")
    return text == "true"


def _epoch(request: web.Request, name: str) -> float | None:
    """Seconds of the epoch, if the caller gave any."""
    text = request.query.get(name)
    if text is None:
        return None
    if _SECONDS.fullmatch(text) is None:
        raise BadRequest(f"{name} must be seconds since the epoch, got {text[:40]!r}")
    return float(text)


def _number(request: web.Request, name: str) -> int:
    """A number of at most seven digits; 0 when it is not given."""
    text = request.query.get(name, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 7:
        raise BadRequest(f"{name} must be a number, got {text[:40]!r}")
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


def _namespace(request: web.Request) -> str:
    """The repository whose backend stores the blob; the origins' copies are shared by all."""
    return _repository(request.match_info["namespace"])


def _namespace_asked(request: web.Request) -> str:
    """The same, where it is a parameter."""
    return _repository(request.query.get("namespace", ""))


def _namespaces(request: web.Request, name: str) -> list[str]:
    """A parameter that may be given several times, or not at all."""
    return [_repository(text) for text in request.query.getall(name, ())[:MAX_NAMESPACES]]


def _checked(names: Iterable[str]) -> list[str]:
    return [_repository(name) for name in names]


def _repository(text: str) -> str:
    try:
        return repository_name(text)
    except InvalidName as error:
        raise NameInvalid(str(error)) from error


def _content_range(request: web.Request) -> tuple[int, int] | None:
    """First and last byte of a chunk (both inclusive), if it says where it belongs."""
    header = request.headers.get("Content-Range")
    if header is None:
        return None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise BadRequest(
            f"Content-Range is {header[:80]!r}, expected <first>-<last>, such as 0-1048575"
        )
    first, last = int(match[1]), int(match[2])
    length = request.content_length
    if last < first or (length is not None and last - first + 1 != length):
        raise BlobUploadInvalid(f"Content-Range {header} does not fit a body of {length} bytes")
    return first, last
