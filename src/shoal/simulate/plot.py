# SPDX-License-Identifier: Apache-2.0
"""One swarm over time as an SVG: what the hosts have, together and each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal.simulate.run import Outcome

WIDTH, HEIGHT = 720, 760
_LEFT, _RIGHT, _TOP, _MIDDLE, _BOTTOM = 56, 16, 40, 340, 44
_MAP_TOP = 396

CURVES = (
    ("slowest host", 0.0, "#c0392b"),
    ("slowest 1 %", 0.01, "#e67e22"),
    ("median host", 0.5, "#2c3e50"),
    ("fastest host", 1.0, "#27ae60"),
)

SHADES = (
    "#fff",
    "#f1f5fb",
    "#dfe9f5",
    "#c9daee",
    "#aec7e4",
    "#8fb1d8",
    "#6f98ca",
    "#517fba",
    "#3766a6",
    "#214d8e",
    "#0b3573",
)
"""From no piece to all of them, by tenths."""

ROWS = 300
"""Hosts that are drawn at most; of more, so many at equal distances."""


def svg(outcome: Outcome) -> str:
    """The document; the run must have been watched."""
    scenario = outcome.scenario
    total = scenario.layers * scenario.pieces
    end = max((moment for moment, _ in outcome.progress), default=1.0) or 1.0
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
    )
    title = (
        f"{scenario.hosts} hosts, {scenario.origins} origins, {total} pieces: what the hosts have"
    )
    parts = [
        head,
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{title}</text>',
        *_curves(outcome, total, end),
        *_by_host(outcome, total, end),
    ]
    step = max(1, round(end / 10))
    for second in range(0, int(end) + 1, step):
        x = _x(second / end)
        parts += [
            f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{second} s</text>'
            for y in (_MIDDLE + 18, HEIGHT - _BOTTOM + 18)
        ]
    return "\n".join((*parts, "</svg>", ""))


def _curves(outcome: Outcome, total: int, end: float) -> Iterator[str]:
    """Share of the pieces over time: the ideal, and hosts by their place among all."""
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        yield f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10 * tenth} %</text>'
    ideal = [(0.0, 0.0), (min(1.0, outcome.scenario.ideal / end), 1.0)]
    yield _curve(ideal, "#999", dashed=True)
    for number, (name, share, colour) in enumerate((("line speed", -1.0, "#999"), *CURVES)):
        x = _LEFT + number * 130
        yield f'<text x="{x}" y="{_MIDDLE + 36}" fill="{colour}">{name}</text>'
        if share >= 0:
            points = [
                (moment / end, _at(counts, share) / total)
                for moment, counts in outcome.progress
                if counts
            ]
            yield _curve(points, colour)


def _by_host(outcome: Outcome, total: int, end: float) -> Iterator[str]:
    """A row for each host, from the first to have all to the last; the darker, the more it has."""
    moments = [moment for moment, _ in outcome.progress]
    rows = [
        [counts[host] / total if host < len(counts) else 0.0 for _, counts in outcome.progress]
        for host in range(max((len(counts) for _, counts in outcome.progress), default=0))
    ]
    rows.sort(key=sum, reverse=True)
    if len(rows) > ROWS:
        rows = [rows[n * len(rows) // ROWS] for n in range(ROWS)]
    height = (HEIGHT - _BOTTOM - _MAP_TOP) / max(1, len(rows))
    areas: dict[int, list[str]] = {}
    for number, row in enumerate(rows):
        y = _MAP_TOP + number * height
        for shade, begin, until in _runs([int(10 * share + 1e-9) for share in row], moments, end):
            x, width = _x(begin), _x(until) - _x(begin)
            area = f"M{x:.1f} {y:.2f}h{width:.1f}v{height:.2f}h-{width:.1f}z"
            areas.setdefault(shade, []).append(area)
    for shade, drawn in sorted(areas.items()):
        yield f'<path d="{"".join(drawn)}" fill="{SHADES[shade]}"/>'
    middle = (_MAP_TOP + HEIGHT - _BOTTOM) / 2
    yield (
        f'<text transform="translate(20 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{len(rows)} hosts</text>"
    )
    yield (
        f'<text x="{_LEFT}" y="{HEIGHT - 6}">each row is a host, white with nothing, '
        "a shade darker with each tenth of the pieces</text>"
    )


def _runs(
    levels: Sequence[int], moments: Sequence[float], end: float
) -> Iterator[tuple[int, float, float]]:
    """Stretches of equal level: the level, and its begin and end as shares of the time."""
    first = 0
    for n in range(1, len(levels) + 1):
        if n == len(levels) or levels[n] != levels[first]:
            until = moments[n] if n < len(levels) else end
            if levels[first]:
                yield levels[first], moments[first] / end, until / end
            first = n


def _at(counts: Sequence[int], share: float) -> int:
    ordered = sorted(counts)
    return ordered[round(share * (len(ordered) - 1))]


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _MIDDLE - share * (_MIDDLE - _TOP)


def _curve(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    path = "L".join(f"{_x(x):.1f} {_y(y):.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
