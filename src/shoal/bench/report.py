# SPDX-License-Identifier: Apache-2.0
"""What every benchmark reports: one JSON object, and the same for humans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

GIB = 1 << 30
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """Medians over the runs. MB are 10^6 bytes, GiB are 2^30."""

    bench: str
    size: int
    runs: int
    wall_s: float
    mb_per_s: float
    first_byte_ms: float
    cpu_s_per_gib: dict[str, float]
    rss_mb: dict[str, float]
    """Peak, by service."""
    extras: dict[str, Any] = field(default_factory=dict)


def document(result: Result) -> dict[str, Any]:
    """As JSON, rounded to what the measurement is worth."""
    rounded: dict[str, Any] = to_milli(asdict(result))
    return rounded


def lines(result: Result) -> Iterator[str]:
    """Render the result for humans, a figure per line."""
    figures = document(result)
    yield from figure_lines(figures | figures.pop("extras"))


def figure_lines(flat: Mapping[str, Any]) -> Iterator[str]:
    """Render figures for humans, one per line."""
    width = max(len(key) for key in flat)
    for key, value in flat.items():
        yield f"{key:<{width}}  {_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(below)}" for name, below in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "none" if value is None else str(value)


def median_by_role(samples: list[dict[str, float]], scale: float = 1.0) -> dict[str, float]:
    """Take the median of each role's figures, times `scale`."""
    return {role: median(sample[role] for sample in samples) * scale for role in samples[0]}


def mb_per_s(size: int, seconds: float) -> float:
    """Throughput in 10^6 bytes per second."""
    return size / MB / seconds


def to_milli(value: Any) -> Any:
    """Round every number in it to three places."""
    if isinstance(value, dict):
        return {key: to_milli(below) for key, below in value.items()}
    if isinstance(value, list):
        return [to_milli(below) for below in value]
    return round(value, 3) if isinstance(value, float) else value
