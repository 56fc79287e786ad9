# SPDX-License-Identifier: Apache-2.0
"""Pull one blob from an agent: cold from the origins, then from its cache, compared with nginx."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from shoal.bench import content
from shoal.bench.client import Transfer, download, push_blob
from shoal.bench.memory import warm_memory
from shoal.bench.report import GIB, Result, mb_per_s, median_by_role
from shoal.bench.usage import Usage
from shoal.bench.yardstick import nginx
from shoal.cluster.layout import Shape
from shoal.cluster.supervisor import Cluster

SHAPE = Shape(agents=1)
_REPOSITORY = "bench/pull"


def disk_needed(size: int, runs: int) -> int:
    """Bytes on disk: the source, an upload, and per run three copies and the agent's."""
    return size * (2 + 4 * runs)


@dataclass(frozen=True, slots=True)
class _Run:
    cold: Transfer
    cached: Transfer
    nginx: Transfer | None
    cold_cpu_s: dict[str, float]
    cached_cpu_s: dict[str, float]
    untouched_write_s: float


async def measure(cluster: Cluster, folder: Path, size: int, runs: int) -> Result:
    """Pull `runs` new blobs of `size` bytes, each cold, cached and from nginx in turn."""
    idle_rss_mb = Usage(cluster.pids()).rss_mb("agent")
    www = folder / "www"
    www.mkdir()
    source = www / "blob"
    await asyncio.to_thread(content.write_random, source, size)
    async with nginx(www) as yardstick:
        measured = [await _run(cluster, source, size, yardstick) for _ in range(runs)]
    wall_s = median(run.cold.wall_s for run in measured)
    return Result(
        bench="pull",
        size=size,
        runs=runs,
        wall_s=wall_s,
        mb_per_s=mb_per_s(size, wall_s),
        first_byte_ms=1000 * median(run.cold.first_byte_s for run in measured),
        cpu_s_per_gib=median_by_role([run.cold_cpu_s for run in measured], GIB / size),
        rss_mb=Usage(cluster.pids()).peak_rss_mb(),
        extras={
            "agent_idle_rss_mb": idle_rss_mb,
            "untouched_write_s": median(run.untouched_write_s for run in measured),
            "client_cpu_s_per_gib": GIB / size * median(r.cold.client_cpu_s for r in measured),
            "cached": {
                **_figures([run.cached for run in measured]),
                "cpu_s_per_gib": median_by_role([run.cached_cpu_s for run in measured], GIB / size),
            },
            **_against_nginx(measured),
        },
    )


async def _run(cluster: Cluster, source: Path, size: int, yardstick: str | None) -> _Run:
    proxy, agent = cluster.layout.of("proxy")[0].url(), cluster.layout.of("agent")[0].url()
    digest = await asyncio.to_thread(content.renew, source)
    await asyncio.to_thread(push_blob, proxy, _REPOSITORY, source, digest)
    await asyncio.to_thread(os.sync)
    url = f"{agent}/v2/{_REPOSITORY}/blobs/{digest}"
    async with warm_memory(source.parent, 2 * size) as write_s:
        usage = Usage(cluster.pids())
        cold = await asyncio.to_thread(download, url)
        cold_cpu_s = usage.cpu_s()
    await asyncio.to_thread(os.sync)
    usage = Usage(cluster.pids())
    cached = await asyncio.to_thread(download, url)
    cached_cpu_s = usage.cpu_s()
    served = None
    if yardstick is not None:
        served = await asyncio.to_thread(download, f"{yardstick}/{source.name}")
    return _Run(cold, cached, served, cold_cpu_s, cached_cpu_s, write_s / 2)


def _figures(transfers: list[Transfer]) -> dict[str, float]:
    wall_s = median(transfer.wall_s for transfer in transfers)
    return {
        "wall_s": wall_s,
        "mb_per_s": mb_per_s(transfers[0].size, wall_s),
        "first_byte_ms": 1000 * median(transfer.first_byte_s for transfer in transfers),
    }


def _against_nginx(measured: list[_Run]) -> dict[str, Any]:
    served = [run.nginx for run in measured if run.nginx is not None]
    if not served:
        return {"nginx": None}
    figures = _figures(served)
    cached = _figures([run.cached for run in measured])
    return {
        "nginx": figures,
        "cached_rate_to_nginx": cached["mb_per_s"] / figures["mb_per_s"],
    }
