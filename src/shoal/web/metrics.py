# SPDX-License-Identifier: Apache-2.0
"""Metrics of this process for Prometheus, and those that every HTTP server of Shoal shares."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_REQUESTS = Counter(
    "shoal_http_requests",
    "Requests answered, by service, route, method and status.",
    ["service", "route", "method", "status"],
)
_SECONDS = Histogram(
    "shoal_http_request_seconds",
    "Seconds from the request's head to the end of the answer.",
    ["service", "route", "method"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300),
)
IN_FLIGHT = Gauge("shoal_http_requests_in_flight", "Requests being answered now.", ["service"])
BODIES_CUT = Counter(
    "shoal_http_bodies_cut",
    "Blob bodies that ended early, by who ended them: the client, or the source of the bytes.",
    ["by"],
)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@lru_cache(maxsize=2048)
def _children(service: str, route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    # Looking a child up by its labels costs more than counting.
    return (
        _REQUESTS.labels(service, route, method, str(status)),
        _SECONDS.labels(service, route, method),
    )


def observe(service: str, route: str, method: str, status: int, seconds: float) -> None:
    """Count one request. `route` is a pattern, never a path that a client chose."""
    known = method if method in _METHODS else "other"
    count, duration = _children(service, route, known, status)
    count.inc()
    duration.observe(seconds)


def exposition() -> bytes:
    """Return all metrics of the process in Prometheus' text format."""
    return generate_latest(REGISTRY)
