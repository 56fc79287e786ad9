# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from shoal.bench.report import Result, document, lines, mb_per_s, median_by_role

RESULT = Result(
    bench="pull",
    size=1 << 30,
    runs=3,
    wall_s=2.00049,
    mb_per_s=mb_per_s(1 << 30, 2.0),
    first_byte_ms=12.3456,
    cpu_s_per_gib={"agent": 1.23456, "origin": 0.2},
    rss_mb={"agent": 70.0},
    extras={"cached": {"wall_s": 0.5}, "nginx": None},
)


def test_the_document_has_the_keys_that_others_read() -> None:
    keys = ["wall_s", "mb_per_s", "first_byte_ms", "cpu_s_per_gib", "rss_mb", "extras"]
    assert [key for key in document(RESULT) if key in keys] == keys
    assert json.loads(json.dumps(document(RESULT))) == document(RESULT)


def test_figures_are_rounded_to_what_they_are_worth() -> None:
    figures = document(RESULT)
    assert figures["wall_s"] == 2.0
    assert figures["first_byte_ms"] == 12.346
    assert figures["cpu_s_per_gib"] == {"agent": 1.235, "origin": 0.2}


def test_humans_get_a_line_per_figure() -> None:
    text = list(lines(RESULT))
    assert "cpu_s_per_gib  agent 1.235, origin 0.2" in text
    assert "cached         wall_s 0.5" in text
    assert "nginx          none" in text
    assert not any(line.startswith("extras") for line in text)


def test_rates_are_in_decimal_megabytes() -> None:
    assert mb_per_s(500_000_000, 2.0) == 250.0


def test_medians_are_taken_by_role() -> None:
    samples = [
        {"agent": 1.0, "origin": 5.0},
        {"agent": 3.0, "origin": 4.0},
        {"agent": 2.0, "origin": 9.0},
    ]
    assert median_by_role(samples, 2.0) == {"agent": 4.0, "origin": 10.0}
