# SPDX-License-Identifier: Apache-2.0
"""The figures of a run, as one JSON object and as lines to read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.config.units import format_bytes
from shoal.simulate.run import Outcome

SHARES = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}


def document(outcome: Outcome) -> dict[str, object]:
    """Seconds of virtual time; copies of the whole image."""
    return {
        "ideal_s": round(outcome.scenario.ideal, 3),
        "downloaded": _shares(outcome.downloaded),
        "unpacked": _shares(outcome.unpacked),
        "origin_copies": round(outcome.origin_copies, 3),
        "cross_zone_copies": round(outcome.cross_zone_copies, 3),
        "wasted": round(outcome.wasted, 4),
        "finished": len(outcome.downloaded),
        "unfinished": outcome.unfinished,
        "pieces": outcome.scenario.layers * outcome.scenario.pieces,
        "piece_bytes": round(outcome.scenario.piece_size),
        "seed": outcome.scenario.seed,
    }


def lines(outcome: Outcome) -> list[str]:
    """A table: seconds, and how much of the line speed that is."""
    scenario = outcome.scenario
    ideal = scenario.ideal
    what = (
        f"{scenario.hosts} hosts, {scenario.origins} origins, {scenario.layers} layers of "
        f"{scenario.pieces} pieces of {format_bytes(round(scenario.piece_size))}; "
        f"ideal {ideal:.2f} s"
    )
    table = [
        what,
        "",
        f"{'seconds':<12}" + "".join(f"{name:>9}" for name in SHARES),
    ]
    for name, values in (("downloaded", outcome.downloaded), ("unpacked", outcome.unpacked)):
        found = _shares(values)
        table.append(f"{name:<12}" + "".join(_cell(found[key], "9.2f") for key in SHARES))
        shares = {key: ideal / value if value else None for key, value in found.items()}
        table.append(f"{'  of ideal':<12}" + "".join(_cell(shares[key], "9.0%") for key in SHARES))
    table += [
        "",
        f"sent by origins    {outcome.origin_copies:.2f} images",
        f"into each zone     {outcome.cross_zone_copies:.2f} images",
        f"came twice         {outcome.wasted:.2%}",
        f"unfinished hosts   {outcome.unfinished}",
    ]
    return table


def _shares(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    if not ordered:
        return dict.fromkeys(SHARES)
    return {
        name: round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3)
        for name, share in SHARES.items()
    }


def _cell(value: float | None, form: str) -> str:
    return f"{'-':>9}" if value is None else f"{value:{form}}"
