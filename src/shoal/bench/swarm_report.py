# SPDX-License-Identifier: Apache-2.0
"""What ``shoal bench swarm`` reports. Pure."""

from __future__ import annotations

from statistics import median
from typing import Any

from shoal.bench.report import MB, median_by_role
from shoal.bench.swarm import Conditions, SwarmRun, cpu_s_per_gib
from shoal.bench.swarm_latency import Latency


def document(runs: list[SwarmRun], conditions: Conditions) -> dict[str, Any]:
    """Medians over the runs; `finish_s` is that of the run whose last agent is the median one."""
    by_last = sorted(runs, key=lambda run: run.finish_s[-1])
    middle = by_last[len(by_last) // 2]
    ideal_s, size = conditions.ideal_s, conditions.size
    by_role = median_by_role([cpu_s_per_gib(run, conditions) for run in runs])
    finish_s = middle.finish_s
    return {
        "bench": "swarm",
        "agents": conditions.agents,
        "size": size,
        "runs": len(runs),
        "rate": conditions.rate or None,
        "limited_by": _limiter(conditions),
        "finish_s": finish_s,
        "ideal_s": ideal_s,
        "last_to_ideal": None if ideal_s is None else finish_s[-1] / ideal_s,
        "last_s_of_runs": [run.finish_s[-1] for run in runs],
        "origin_copies": median(run.from_origins / size for run in runs),
        "peer_copies": median(run.from_peers / size for run in runs),
        "cpu_s_per_gib": median(sum(cpu_s_per_gib(run, conditions).values()) for run in runs),
        "cpu_s_per_gib_by_role": by_role,
        "other_cores": median(run.other_cores for run in runs),
        "first_byte_ms": 1000 * median(median(run.first_byte_s) for run in runs),
        "first_byte_ms_max": 1000 * max(run.first_byte_s[-1] for run in runs),
        "mb_per_s": size / MB / median(finish_s),
        "mb_per_s_together": conditions.agents * size / MB / finish_s[-1],
    }


def latency_document(measured: list[Latency], size: int) -> dict[str, Any]:
    """Medians over the runs (of small blobs: over all of them), and each run's figures."""
    small_ms = [1000 * seconds for it in measured for seconds in it.small_s]
    layer_ms = [1000 * seconds for it in measured for seconds in it.layer_s]
    return {
        "bench": "swarm-latency",
        "size": size,
        "runs": len(measured),
        "first_byte_small_ms": median(small_ms),
        "first_byte_small_ms_max": max(small_ms),
        "small_blobs": len(small_ms),
        "first_byte_layer_ms": median(layer_ms),
        "first_byte_layer_ms_max": max(layer_ms),
        "first_byte_large_ms": 1000 * median(it.large_s for it in measured),
        "tiny_layers": measured[0].layers,
        "tiny_layers_s": median(it.image_s for it in measured),
        "first_byte_small_ms_of_runs": [1000 * median(it.small_s) for it in measured],
        "first_byte_large_ms_of_runs": [1000 * it.large_s for it in measured],
        "tiny_layers_s_of_runs": [it.image_s for it in measured],
    }


def _limiter(conditions: Conditions) -> str | None:
    if not conditions.rate:
        return None
    return "tbf between network namespaces" if conditions.netns else "shoal"
