# SPDX-License-Identifier: Apache-2.0
"""One swarm over time as an SVG: what share of the pieces the hosts have."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.simulate.run import Outcome

WIDTH, HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 40, 44

CURVES = (
    ("slowest host", 0.0, "#c0392b"),
    ("slowest 1 %", 0.01, "#e67e22"),
    ("median host", 0.5, "#2c3e50"),
    ("fastest host", 1.0, "#27ae60"),
)


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
    ]
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10 * tenth} %</text>'
        )
    step = max(1, round(end / 10))
    for second in range(0, int(end) + 1, step):
        x = _x(second / end)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 24}" text-anchor="middle">{second} s</text>')
    ideal = [(0.0, 0.0), (min(1.0, scenario.ideal / end), 1.0)]
    parts.append(_curve(ideal, "#999", dashed=True))
    for number, (name, share, colour) in enumerate((("line speed", -1.0, "#999"), *CURVES)):
        x = _LEFT + number * 130
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" fill="{colour}">{name}</text>')
        if share >= 0:
            points = [
                (moment / end, _at(counts, share) / total)
                for moment, counts in outcome.progress
                if counts
            ]
            parts.append(_curve(points, colour))
    return "\n".join((*parts, "</svg>", ""))


def _at(counts: Sequence[int], share: float) -> int:
    ordered = sorted(counts)
    return ordered[round(share * (len(ordered) - 1))]


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _curve(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    path = "L".join(f"{_x(x):.1f} {_y(y):.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
