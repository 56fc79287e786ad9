# SPDX-License-Identifier: Apache-2.0
"""Read what handlers need of a request: its deadline, and bodies of a bounded size."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from aiohttp import web

from shoal.model.errors import ApiError, BadRequest, TooLarge
from shoal.web.conditions import merged_header
from shoal.web.deadline import Deadline

DEADLINE = web.RequestKey("shoal_deadline", Deadline)

T = TypeVar("T")


class RequestStalled(ApiError):
    """408: the body did not come in time."""

    status, code = 408, "REQUEST_TIMEOUT"


def deadline_of(request: web.Request) -> Deadline:
    """Return the caller's deadline, or the service's default for callers that announced none."""
    return request[DEADLINE]


async def read_body(request: web.Request, limit: int) -> bytes:
    """Return a body of at most `limit` bytes; raise `TooLarge` or `RequestStalled`."""
    if request.content.is_eof():
        # It came with the head, as small ones do: there is nothing to wait for.
        whole = request.content.read_nowait()
        if len(whole) > limit:
            raise TooLarge(f"the body has {len(whole)} bytes; at most {limit} are taken here")
        return whole
    announced = request.content_length
    if announced is not None and announced > limit:
        raise TooLarge(f"the body has {announced} bytes; at most {limit} are taken here")
    deadline = deadline_of(request)
    body = bytearray()
    try:
        async with asyncio.timeout(deadline.remaining()):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise TooLarge(f"the body has more than the {limit} bytes that are taken here")
    except TimeoutError as error:
        raise RequestStalled(f"the body did not come in time; {len(body)} bytes did") from error
    return bytes(body)


async def read_json(request: web.Request, kind: type[T], *, limit: int = 1024 * 1024) -> T:
    """Return the JSON body as `kind`; raise `BadRequest`, `TooLarge` or `RequestStalled`."""
    body = await read_body(request, limit)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body of {request.method} {request.path}: {error}") from error


__all__ = ["DEADLINE", "RequestStalled", "deadline_of", "merged_header", "read_body", "read_json"]
