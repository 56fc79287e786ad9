# SPDX-License-Identifier: Apache-2.0
"""``/v2/<name>/blobs/uploads/``: upload sessions (OCI distribution-spec, "Pushing blobs").

What the clients do: skopeo and crane send one PATCH with Content-Length, docker and podman one
PATCH in chunked encoding and without Content-Type, containerd and oras one PUT with the body,
regctl PATCHes with Content-Range; the digest comes with the last PUT.
"""

from __future__ import annotations

from aiohttp import web

from shoal.model.digest import ALGORITHMS, Digest
from shoal.model.errors import ApiError, DigestInvalid, UploadOutOfOrder
from shoal.registry.base import (
    body_of,
    parameter,
    parse_digest,
    parse_repository,
    repository,
)
from shoal.registry.chunks import parse_chunk_range, received_range
from shoal.registry.headers import CHUNK_MIN_LENGTH
from shoal.registry.ports import Chunk, Writer
from shoal.web.requests import deadline_of

MIN_CHUNK = 1024 * 1024
"""Chunk size asked of clients that cut a blob: below it, requests cost more than their bytes.
Smaller chunks are taken, too."""


class Uploads:
    """Takes blobs in."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Open a session; or mount a blob; or, with ``?digest=``, take the whole blob at once."""
        name = repository(request)
        mount, whole = parameter(request, "mount"), parameter(request, "digest")
        algorithm = _algorithm(request)
        if (source := parameter(request, "from")) is not None:
            parse_repository(source)
        if mount is not None:
            digest = parse_digest(mount)
            if await self._writer.mount(name, digest, source, deadline_of(request)):
                return _created(name, digest)
            algorithm = digest.algorithm
        elif whole is not None:
            return await self._take_whole(request, name, parse_digest(whole))
        upload = await self._writer.start_upload(name, algorithm)
        headers = {CHUNK_MIN_LENGTH: str(MIN_CHUNK)}
        return _progress(202, name, upload, 0, headers)

    async def patch(self, request: web.Request) -> web.StreamResponse:
        """Append a chunk."""
        name, upload = repository(request), request.match_info["upload"]
        chunk = _chunk(request) or Chunk(body_of(request), size=0)
        try:
            size = await self._writer.append(name, upload, chunk)
        except UploadOutOfOrder as error:
            raise await self._with_progress(error, name, upload) from error
        return _progress(202, name, upload, size)

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Append the last chunk, if the request has a body, and finish the blob."""
        name, upload = repository(request), request.match_info["upload"]
        text = parameter(request, "digest")
        if text is None:
            raise DigestInvalid("finishing an upload needs ?digest=<algorithm>:<hex>")
        digest = parse_digest(text)
        try:
            await self._writer.finish(name, upload, digest, _chunk(request), deadline_of(request))
        except UploadOutOfOrder as error:
            raise await self._with_progress(error, name, upload) from error
        return _created(name, digest)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Say how much was received."""
        name, upload = repository(request), request.match_info["upload"]
        return _progress(204, name, upload, await self._writer.upload_size(name, upload))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Cancel the session."""
        await self._writer.cancel(repository(request), request.match_info["upload"])
        return web.Response(status=204)

    async def _take_whole(
        self, request: web.Request, name: str, digest: Digest
    ) -> web.StreamResponse:
        upload = await self._writer.start_upload(name, digest.algorithm)
        try:
            chunk = Chunk(body_of(request), size=request.content_length)
            await self._writer.finish(name, upload, digest, chunk, deadline_of(request))
        except BaseException:
            # The client was never told of this session, so nobody can resume it.
            await self._drop(name, upload)
            raise
        return _created(name, digest)

    async def _drop(self, name: str, upload: str) -> None:
        try:
            await self._writer.cancel(name, upload)
        except ApiError:
            return  # a failed finish may have dropped it already

    async def _with_progress(
        self, error: UploadOutOfOrder, name: str, upload: str
    ) -> UploadOutOfOrder:
        """Tell the client where to resume (spec: a 416 carries Location and Range)."""
        size = await self._writer.upload_size(name, upload)
        error.headers.update(Location=_location(name, upload), Range=received_range(size))
        return error


def _algorithm(request: web.Request) -> str:
    """Return the algorithm that the digest of the blob will be of; raise `DigestInvalid`."""
    algorithm = parameter(request, "digest-algorithm")
    if algorithm is None:
        return "sha256"
    if algorithm not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise DigestInvalid(f"digest-algorithm is {algorithm[:40]!r}; it is one of {known}")
    return algorithm


def _chunk(request: web.Request) -> Chunk | None:
    """Return what the request brings, or None when it has no body."""
    size = request.content_length
    header = request.headers.get("Content-Range")
    if not request.body_exists and header is None:
        return None
    if header is None:
        return Chunk(body_of(request), size=size)
    offset, size = parse_chunk_range(header, size)
    return Chunk(body_of(request), offset=offset, size=size)


def _location(name: str, upload: str) -> str:
    # Relative: right for every host name, port and prefix through which the client came.
    return f"/v2/{name}/blobs/uploads/{upload}"


def _progress(
    status: int, name: str, upload: str, size: int, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        status=status,
        headers={
            "Location": _location(name, upload),
            "Range": received_range(size),
            "Docker-Upload-UUID": upload,
            **(headers or {}),
        },
    )


def _created(name: str, digest: Digest) -> web.Response:
    location = f"/v2/{name}/blobs/{digest}"
    headers = {"Location": location, "Docker-Content-Digest": str(digest)}
    return web.Response(status=201, headers=headers)
