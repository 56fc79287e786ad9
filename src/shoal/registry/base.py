# SPDX-License-Identifier: Apache-2.0
"""Reading requests: what the resources of the registry API have in common."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Protocol
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import (
    BadRequest,
    DigestInvalid,
    NameInvalid,
    TagInvalid,
    Unsupported,
)
from shoal.model.names import InvalidName, InvalidTag, repository_name, split_image
from shoal.registry.ports import ClientGone

MAX_PAGE = 1000
"""Most entries of one answer of a listing; the Link header leads to the rest."""

_DIGITS = re.compile(r"[0-9]+", re.ASCII)


class Answers(Protocol):
    """A request handler."""

    async def __call__(self, request: web.Request) -> web.StreamResponse: ...


def repository(request: web.Request) -> str:
    """Return the repository of the path; raise `NameInvalid`.

    A slash that is written ``%2F`` separates nothing: whoever stands in front of the registry and
    decides by the path must see the components that the registry sees.
    """
    name = parse_repository(request.match_info["name"])
    path = request.rel_url.raw_path
    if "%2" in path and not path.startswith(f"/v2/{name}/") and "%2f" in path.lower():
        raise NameInvalid(f"the name of the repository has an encoded slash: {path[:160]!r}")
    return name


def parse_repository(text: str) -> str:
    """Return a valid repository name; raise `NameInvalid`."""
    try:
        return repository_name(text)
    except InvalidName as error:
        raise NameInvalid(str(error)) from error


def parse_digest(text: str) -> Digest:
    """Return the digest; raise `DigestInvalid`."""
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise DigestInvalid(str(error)) from error


def parse_image(text: str) -> tuple[str, Digest | str]:
    """Repository and reference of ``repository``, ``repository:tag`` or ``repository@digest``.

    Raises `NameInvalid`, `TagInvalid` or `DigestInvalid`.
    """
    try:
        return split_image(text)
    except InvalidName as error:
        raise NameInvalid(str(error)) from error
    except InvalidTag as error:
        raise TagInvalid(str(error)) from error
    except InvalidDigest as error:
        raise DigestInvalid(str(error)) from error


def parameter(request: web.Request, name: str) -> str | None:
    """Return a query parameter; one that is given twice must have one value."""
    values = set(request.query.getall(name, []))
    if len(values) > 1:
        raise BadRequest(f"the query gives {name} {len(values)} different values; give it once")
    return values.pop() if values else None


async def body_of(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; raise `ClientGone` when the connection ends before it does."""
    received = 0
    try:
        async for chunk in request.content.iter_any():
            received += len(chunk)
            yield chunk
    except (ConnectionError, HttpProcessingError, web.RequestPayloadError) as error:
        raise ClientGone(
            f"the body of {request.method} {request.path} ended after {received} bytes: "
            f"{str(error) or type(error).__name__}"
        ) from error


def page_of(request: web.Request) -> tuple[int, str]:
    """Return ``n`` (clamped to `MAX_PAGE`) and ``last`` of a listing; raise `BadRequest`."""
    text = parameter(request, "n")
    last = parameter(request, "last") or ""
    if text is None:
        return MAX_PAGE, last
    if _DIGITS.fullmatch(text) is None:
        raise BadRequest(f"n is the number of entries to list, 0 or more; got {text[:40]!r}")
    digits = text.lstrip("0")[: len(str(MAX_PAGE)) + 1]
    return min(int(digits or "0"), MAX_PAGE), last


def page(request: web.Request, field: str, entries: list[str], n: int, **more: str) -> web.Response:
    """Answer one page of a listing; `entries` holds one more than `n` when another page follows."""
    shown = entries[:n]
    headers = {}
    if shown and len(entries) > n:
        headers["Link"] = next_link(request, n, shown[-1])
    body = msgspec.json.encode({**more, field: shown})
    return web.Response(body=body, content_type="application/json", headers=headers)


def next_link(request: web.Request, n: int, last: str) -> str:
    """Return the Link header (RFC 8288) that leads to what follows `last`.

    Everything else that the query said holds for the next page, too.
    """
    rest = {name: text for name, text in request.query.items() if name not in {"n", "last"}}
    query = urlencode({"n": n, "last": last, **rest}, quote_via=quote, safe="")
    return f'<{quote(request.path)}?{query}>; rel="next"'


def refuse(what: str, *, allow: str) -> Answers:
    """Return a handler that answers 405 UNSUPPORTED, saying why and what is allowed instead."""

    async def refused(request: web.Request) -> web.StreamResponse:
        raise Unsupported(f"{request.method} {request.path}: {what}", headers={"Allow": allow})

    return refused


def content_headers(digest: Digest, size: int, content_type: str) -> Mapping[str, str]:
    """Headers of an answer about content that its digest names."""
    return {
        "Content-Type": content_type,
        "Content-Length": str(size),
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
    }


def bare(headers: Mapping[str, str]) -> dict[str, str]:
    """Return those of `content_headers` that a 304, which has no content, carries as well."""
    return {name: headers[name] for name in ("Docker-Content-Digest", "ETag")}
