# SPDX-License-Identifier: Apache-2.0
"""Metrics of this process for Prometheus, and those that every HTTP server of Shoal shares."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import cache

from prometheus_client import REGISTRY, Counter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

BODIES_CUT = Counter(
    "shoal_http_bodies_cut",
    "Blob bodies that ended early, by who ended them: the client, or the source of the bytes.",
    ["by"],
)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)
_LABELS = (*map(str, _BOUNDS), "+Inf")


class _Tally:
    """Requests of one route, method and status: how many took how long."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(_LABELS)
        self.seconds = 0.0


class Requests:
    """Requests to one service of this process, counted in its event loop.

    Plain numbers, which only a scrape makes metrics of: the counters of the metrics library are
    for any thread, and took a sixth of the time of answering a small request.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.tallies: dict[tuple[str, str, int], _Tally] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request. `route` is a pattern, never a path that a client chose."""
        tally = self.tallies.get((route, method, status))
        if tally is None:
            known = method if method in _METHODS else "other"
            tally = self.tallies.setdefault((route, known, status), _Tally())
        tally.buckets[bisect_left(_BOUNDS, seconds)] += 1
        tally.seconds += seconds


class _Services(Collector):
    """The requests to all services of this process."""

    def __init__(self) -> None:
        self.by_name: dict[str, Requests] = {}

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily | GaugeMetricFamily]:
        count = CounterMetricFamily(
            "shoal_http_requests",
            "Requests answered, by service, route, method and status.",
            labels=["service", "route", "method", "status"],
        )
        duration = HistogramMetricFamily(
            "shoal_http_request_seconds",
            "Seconds from the request's head to the end of the answer.",
            labels=["service", "route", "method"],
        )
        running = GaugeMetricFamily(
            "shoal_http_requests_in_flight", "Requests being answered now.", labels=["service"]
        )
        for service, requests in self.by_name.items():
            running.add_metric([service], requests.in_flight)
            merged: dict[tuple[str, str], _Tally] = {}
            for (route, method, status), tally in requests.tallies.items():
                count.add_metric([service, route, method, str(status)], sum(tally.buckets))
                whole = merged.setdefault((route, method), _Tally())
                whole.seconds += tally.seconds
                whole.buckets = [a + b for a, b in zip(whole.buckets, tally.buckets, strict=True)]
            for (route, method), whole in merged.items():
                duration.add_metric([service, route, method], _cumulated(whole), whole.seconds)
        yield count
        yield duration
        yield running


def _cumulated(tally: _Tally) -> list[tuple[str, float]]:
    """Each bucket with all that are below it, as the histograms of Prometheus are."""
    below = 0
    buckets: list[tuple[str, float]] = []
    for label, number in zip(_LABELS, tally.buckets, strict=True):
        below += number
        buckets.append((label, below))
    return buckets


_SERVICES = _Services()
REGISTRY.register(_SERVICES)


@cache
def requests_to(service: str) -> Requests:
    """The requests to a service; its applications (the agent has two) are counted together."""
    return _SERVICES.by_name.setdefault(service, Requests())


def exposition() -> bytes:
    """Return all metrics of the process in Prometheus' text format."""
    return generate_latest(REGISTRY)
