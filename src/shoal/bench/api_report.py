# SPDX-License-Identifier: Apache-2.0
"""What ``shoal bench api`` prints: tables for humans, and one JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from shoal.bench.api import LAYERS, Figure, Outcome
from shoal.bench.uploads import UploadsOutcome

_COLUMNS = ("service", "request", "connections", "/s", "/s and core", "p50 ms", "p99 ms")
_WORDS = 2
"""Columns that hold words; the others hold numbers, and end at the same place."""


def document(outcome: Outcome) -> dict[str, Any]:
    """As JSON, rounded to what the measurement is worth."""
    return {
        "bench": "api",
        "tags": outcome.tags,
        "seconds": outcome.seconds,
        "requests": [_figures(figure) for figure in outcome.figures],
        "push": {
            "layers": LAYERS,
            "wall_s": round(median(outcome.push_s), 3),
            "each_s": [round(taken, 3) for taken in outcome.push_s],
        },
        "rss_mb": _rounded(outcome.rss_mb),
    }


def lines(outcome: Outcome) -> Iterator[str]:
    """A table (Markdown, as in the docs), and the push below it."""
    rows = [_COLUMNS, *map(_row, outcome.figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * w if i < _WORDS else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    for row in (rows[0], tuple(rule), *rows[1:]):
        cells = [
            f"{cell:<{width}}" if number < _WORDS else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"| {' | '.join(cells)} |"
    taken = ", ".join(f"{seconds:.2f} s" for seconds in outcome.push_s)
    yield f"push of an image of {LAYERS} layers: {taken}"


def uploads_document(outcome: UploadsOutcome) -> dict[str, Any]:
    """As JSON, rounded likewise."""
    return {
        "bench": "api",
        "uploads": outcome.count,
        "size": outcome.size,
        "wall_s": round(outcome.wall_s, 3),
        "mb_per_s": round(outcome.count * outcome.size / outcome.wall_s / 1e6, 1),
        "idle_rss_mb": round(outcome.idle_rss_mb, 1),
        "rss_mb": _rounded(outcome.rss_mb),
        "cpu_s": _rounded(outcome.cpu_s),
    }


def uploads_lines(outcome: UploadsOutcome) -> Iterator[str]:
    """A figure per line."""
    for key, value in uploads_document(outcome).items():
        yield f"{key:<11}  {value}"


def _figures(figure: Figure) -> dict[str, Any]:
    loaded, per_core = figure.loaded, figure.per_core
    return {
        "service": figure.service,
        "request": figure.case.name,
        "connections": figure.manner.connections,
        "keep_alive": figure.manner.keep_alive,
        "requests": loaded.requests,
        "per_second": round(figure.per_second),
        "per_core": None if per_core is None else round(per_core),
        "p50_ms": round(loaded.p50_ms, 3),
        "p99_ms": round(loaded.p99_ms, 3),
        "cpu_us_per_request": {
            role: round(1e6 * spent / loaded.requests, 1) for role, spent in figure.cpu_s.items()
        },
        "client_cpu_us_per_request": round(1e6 * loaded.client_cpu_s / loaded.requests, 1),
        "bytes_per_answer": loaded.received // loaded.requests,
    }


def _row(figure: Figure) -> tuple[str, ...]:
    manner, per_core = figure.manner, figure.per_core
    return (
        figure.service,
        figure.case.name,
        str(manner.connections) if manner.keep_alive else f"{manner.connections}, new each",
        f"{figure.per_second:.0f}",
        "none" if per_core is None else f"{per_core:.0f}",
        f"{figure.loaded.p50_ms:.2f}",
        f"{figure.loaded.p99_ms:.2f}",
    )


def _rounded(by_role: dict[str, float]) -> dict[str, float]:
    return {role: round(value, 1) for role, value in by_role.items()}
