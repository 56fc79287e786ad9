# SPDX-License-Identifier: Apache-2.0
"""The HTTP application of every service: health, readiness, metrics, deadlines, errors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from shoal.web import metrics
from shoal.web.conditions import merged_header
from shoal.web.deadline import Deadline
from shoal.web.process import Stop, run
from shoal.web.rendering import Internal, answer_for, error_for
from shoal.web.requests import DEADLINE, deadline_of, read_body, read_json
from shoal.web.serving import IN_FLIGHT, Listener, serve

READINESS_TIMEOUT = 5.0
"""Seconds that a readiness check may take before it counts as not ready."""

CLIENT_GONE = 499
"""Status under which requests are counted whose client left before the answer."""

Readiness = Callable[[], Awaitable[list[str]]]

log = structlog.get_logger()


def application(
    service: str,
    *,
    readiness: Readiness,
    max_body: int = 4 * 1024 * 1024,
    request_timeout: float = 60.0,
) -> web.Application:
    """Make an application that answers /health, /readiness and /metrics, and renders all errors.

    `readiness` returns what is missing, nothing when the service can do its job. `max_body` bounds
    bodies that aiohttp reads into memory (``request.read()``); streamed ones are the handler's to
    bound. `request_timeout` (seconds) is the deadline of callers that announce none.
    """
    running: dict[asyncio.Task[Any], web.Request] = {}
    app = web.Application(
        middlewares=[_edge(service, request_timeout, running)], client_max_size=max_body
    )
    app[IN_FLIGHT] = running

    async def health(_request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def ready(_request: web.Request) -> web.Response:
        missing = await _missing(readiness)
        answer = {"ready": False, "missing": missing} if missing else {"ready": True}
        return web.Response(
            status=503 if missing else 200,
            body=msgspec.json.encode(answer),
            content_type="application/json",
        )

    async def measured(_request: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": metrics.CONTENT_TYPE}
        )

    app.router.add_get("/health", health)
    app.router.add_get("/readiness", ready)
    app.router.add_get("/metrics", measured)
    return app


async def _missing(readiness: Readiness) -> list[str]:
    try:
        async with asyncio.timeout(READINESS_TIMEOUT):
            return await readiness()
    except TimeoutError:
        return [f"the readiness check took more than {READINESS_TIMEOUT:g} s"]


def _edge(
    service: str, request_timeout: float, running: dict[asyncio.Task[Any], web.Request]
) -> Middleware:
    """Make the middleware around every handler: deadline, errors, metrics.

    It runs for every request, so what does not change is looked up once, here.
    """
    requests = metrics.requests_to(service)
    verbose = log.is_enabled_for(logging.DEBUG)
    clock = time.perf_counter

    @web.middleware
    async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = clock()
        request[DEADLINE] = Deadline.from_headers(request.headers, request_timeout)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        running[task] = request
        requests.in_flight += 1
        status = CLIENT_GONE
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as raised:
            status = raised.status
            if status < 400:
                raise
            response = answer_for(error_for(request, raised))
        except Exception as raised:  # noqa: BLE001 the edge: whatever is raised becomes an answer
            response = _failed(request, raised)
            status = response.status
        finally:
            del running[task]
            requests.in_flight -= 1
            seconds = clock() - started
            requests.observe(_route(request), request.method, status, seconds)
            if verbose:
                log.debug(
                    "request",
                    method=request.method,
                    path=request.path,
                    status=status,
                    seconds=round(seconds, 4),
                )
        return response

    return edge


def _failed(request: web.Request, raised: Exception) -> web.Response:
    gone = request.transport is None or request.transport.is_closing()
    if gone and isinstance(raised, ConnectionError):
        return web.Response(status=CLIENT_GONE)
    error = error_for(request, raised)
    what = {"method": request.method, "path": request.path, "status": error.status}
    if isinstance(error, Internal):
        log.error("unexpected error", exc_info=raised, **what)
    elif error.status >= 500:
        log.warning("request failed", why=error.message, **what)
    if request.writer.output_size and request.transport is not None:
        # A head is out already: a second one would be taken for the body.
        request.transport.abort()
    return answer_for(error)


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "unmatched" if resource is None else resource.canonical


__all__ = [
    "Listener",
    "Stop",
    "application",
    "deadline_of",
    "merged_header",
    "read_body",
    "read_json",
    "run",
    "serve",
]
