# SPDX-License-Identifier: Apache-2.0
"""Turn what handlers raise into answers: the one place where errors become HTTP."""

from __future__ import annotations

import math

import msgspec
from aiohttp import web

from shoal.model.errors import (
    ApiError,
    BadRequest,
    InsufficientStorage,
    NotHere,
    TooLarge,
    Unavailable,
    Unsupported,
)
from shoal.store.full import is_full
from shoal.store.ingest import Stalled
from shoal.web.failures import CallFailed, Overloaded, Unreachable
from shoal.web.requests import RequestStalled, deadline_of


class BadGateway(Unavailable):
    """502: another service gave an answer that helps nobody."""

    status = 502


class GatewayTimeout(Unavailable):
    """504: the deadline passed while others were asked."""

    status = 504


class Internal(ApiError):
    """500: a defect of Shoal; the log has the traceback."""


def answer_for(error: ApiError) -> web.Response:
    """Render an error: status, headers, and the spec's JSON body."""
    return web.Response(
        status=error.status,
        body=msgspec.json.encode(error.body()),
        content_type="application/json",
        headers=error.headers,
    )


def error_for(request: web.Request, raised: Exception) -> ApiError:
    """Say which answer an exception means; `Internal` when it is a defect."""
    if isinstance(raised, ApiError):
        return raised
    if isinstance(raised, CallFailed):
        return _upstream(request, raised)
    if isinstance(raised, web.HTTPException):
        return _routing(request, raised)
    if isinstance(raised, web.RequestPayloadError):
        return BadRequest(f"the body of {request.method} {request.path} is malformed: {raised}")
    if isinstance(raised, Stalled):
        return RequestStalled(str(raised))
    if isinstance(raised, TimeoutError):
        return GatewayTimeout(f"{request.method} {request.path} was not done in time")
    if isinstance(raised, OSError) and is_full(raised):
        return InsufficientStorage(
            f"the disk of {request.host} is full ({raised.strerror}); nothing of this was kept"
        )
    return Internal("unexpected error; the log of the service says more")


def _upstream(request: web.Request, failed: CallFailed) -> ApiError:
    if failed.status == InsufficientStorage.status:
        return InsufficientStorage(str(failed))
    if isinstance(failed, Overloaded):
        return Unavailable(str(failed), retry_after=max(1, math.ceil(failed.retry_after or 1)))
    if not isinstance(failed, Unreachable) and failed.status is not None:
        return BadGateway(str(failed))
    if deadline_of(request).expired:
        return GatewayTimeout(str(failed))
    return Unavailable(str(failed))


def _routing(request: web.Request, raised: web.HTTPException) -> ApiError:
    if isinstance(raised, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(raised.allowed_methods))
        return Unsupported(
            f"{request.method} is not supported on {request.path}; allowed: {allowed}",
            headers={"Allow": allowed},
        )
    if isinstance(raised, web.HTTPRequestEntityTooLarge):
        return TooLarge(raised.text or "the body is too large")
    if isinstance(raised, web.HTTPNotFound):
        return NotHere(f"there is nothing at {request.path}")
    error = ApiError(raised.text or raised.reason)
    error.status = raised.status
    error.headers = {name: raised.headers[name] for name in raised.headers if name == "Location"}
    return error
