# SPDX-License-Identifier: Apache-2.0
"""Push one blob through the proxy: three durable copies, compared with three copies by dd."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from shoal.bench import content
from shoal.bench.client import Transfer, exists, push_blob
from shoal.bench.report import GIB, Result, mb_per_s, median_by_role
from shoal.bench.usage import Usage
from shoal.bench.yardstick import COPIES, durable_copies
from shoal.cluster.layout import Layout, Shape
from shoal.cluster.supervisor import Cluster

SHAPE = Shape(origins=COPIES, agents=0)
_REPOSITORY = "bench/push"
_COPIES_WITHIN = 120.0


def disk_needed(size: int, runs: int) -> int:
    """Bytes on disk: the source, an upload, dd's copies, and three copies per run."""
    return size * (2 + COPIES + COPIES * runs)


@dataclass(frozen=True, slots=True)
class _Run:
    transfer: Transfer
    all_copies_s: float
    dd_s: float
    cpu_s: dict[str, float]


async def measure(cluster: Cluster, folder: Path, size: int, runs: int) -> Result:
    """Push `runs` new blobs of `size` bytes, in turn with dd."""
    source = folder / "source"
    await asyncio.to_thread(content.write_random, source, size)
    measured = [await _run(cluster, folder, source) for _ in range(runs)]
    wall_s = median(run.transfer.wall_s for run in measured)
    dd_s = median(run.dd_s for run in measured)
    return Result(
        bench="push",
        size=size,
        runs=runs,
        wall_s=wall_s,
        mb_per_s=mb_per_s(size, wall_s),
        first_byte_ms=1000 * median(run.transfer.first_byte_s for run in measured),
        cpu_s_per_gib=median_by_role([run.cpu_s for run in measured], GIB / size),
        rss_mb=Usage(cluster.pids()).peak_rss_mb(),
        extras={
            "all_copies_s": median(run.all_copies_s for run in measured),
            "client_cpu_s_per_gib": GIB
            / size
            * median(run.transfer.client_cpu_s for run in measured),
            "dd_three_copies_s": dd_s,
            "ratio_to_dd": wall_s / dd_s,
            "ratio_to_dd_each_run": [run.transfer.wall_s / run.dd_s for run in measured],
        },
    )


async def _run(cluster: Cluster, folder: Path, source: Path) -> _Run:
    digest = await asyncio.to_thread(content.renew, source)
    await asyncio.to_thread(os.sync)
    usage = Usage(cluster.pids())
    began = time.perf_counter()
    transfer = await asyncio.to_thread(
        push_blob, cluster.layout.of("proxy")[0].url(), _REPOSITORY, source, digest
    )
    await _all_copies(cluster.layout, digest)
    all_copies_s = time.perf_counter() - began
    cpu_s = usage.cpu_s()
    await asyncio.to_thread(os.sync)
    return _Run(transfer, all_copies_s, await durable_copies(source, folder), cpu_s)


async def _all_copies(layout: Layout, digest: str) -> None:
    """Wait until every origin has the blob: the push was acknowledged by the write quorum."""
    async with asyncio.timeout(_COPIES_WITHIN):
        for origin in layout.of("origin"):
            url = f"{origin.url()}/internal/blobs/{digest}"
            while not await asyncio.to_thread(exists, url):  # noqa: ASYNC110 -- another process
                await asyncio.sleep(0.02)
