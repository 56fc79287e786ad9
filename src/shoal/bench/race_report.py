# SPDX-License-Identifier: Apache-2.0
"""What ``shoal bench race`` prints: a table for humans, and one JSON object."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shoal.bench.race import Conditions, Outcome

_COLUMNS = (
    "set-up",
    "pushes",
    "failures",
    "saved by retry",
    "attempts",
    "tag p50 ms",
    "tag p99 ms",
)


def document(outcomes: Sequence[Outcome], conditions: Conditions) -> dict[str, Any]:
    """As JSON: the figures of each set-up, and what they were measured under."""
    return {
        "setups": [_figures(outcome) for outcome in outcomes],
        "conditions": {
            "seed": conditions.seed,
            "late": conditions.late,
            "late_share": conditions.late_share,
            "max_delay_s": conditions.max_delay,
            "head_start_s": conditions.head_start,
            "fail_rate": conditions.fail_rate,
        },
    }


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A table (Markdown, as in the docs), and below it why pushes failed."""
    rows = [_COLUMNS, *(_row(_figures(outcome)) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            f"{cell:<{width}}" if text else f"{cell:>{width}}"
            for cell, width, text in zip(row, widths, _TEXT, strict=True)
        ]
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            rules = [
                "-" * width if text else "-" * (width - 1) + ":"
                for width, text in zip(widths, _TEXT, strict=True)
            ]
            yield f"| {' | '.join(rules)} |"
    for outcome in outcomes:
        for reason, count in outcome.failed_with.items():
            yield f"{outcome.name}: {count} failed with {reason}"
        if outcome.lost:
            yield f"{outcome.name}: {outcome.lost} acknowledged and then not there"


_TEXT = (True, False, False, False, True, False, False)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that is not below this share of all; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "pushes": outcome.pushes,
        "failures": outcome.failures,
        "saved_by_retry": outcome.resolutions.saved_by_retry,
        "attempts": outcome.resolutions.attempts(),
        "tag_p50_ms": _ms(percentile(outcome.tag_seconds, 0.5)),
        "tag_p99_ms": _ms(percentile(outcome.tag_seconds, 0.99)),
        "manifest_download_attempts": dict(outcome.resolutions.downloads),
        "dependency_check_attempts": dict(outcome.resolutions.checks),
        "failed_with": dict(outcome.failed_with),
        "lost": outcome.lost,
        "killed": outcome.killed,
        "faults": {
            "late_copies": sum(report.late for report in outcome.faults),
            "hidden_answers": sum(report.hidden for report in outcome.faults),
            "failed_requests": sum(report.failed for report in outcome.faults),
        },
        "wall_s": round(outcome.wall_s, 1),
    }


def _row(figures: Mapping[str, Any]) -> tuple[str, ...]:
    attempts = ", ".join(f"{number}: {count}" for number, count in figures["attempts"].items())
    return (
        figures["name"],
        str(figures["pushes"]),
        f"{figures['failures']} ({figures['failures'] / figures['pushes']:.1%})",
        str(figures["saved_by_retry"]),
        attempts or "none",
        _text(figures["tag_p50_ms"]),
        _text(figures["tag_p99_ms"]),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)


def _text(milliseconds: float | None) -> str:
    return "none" if milliseconds is None else f"{milliseconds:.0f}"
