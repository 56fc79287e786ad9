# SPDX-License-Identifier: Apache-2.0
"""Many uploads through one proxy at the same time: how long they take, and how much memory."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier

from shoal.bench import content
from shoal.bench.client import RegistryConnection, Salted
from shoal.bench.usage import Usage
from shoal.cluster import interrupt
from shoal.cluster.layout import Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.room import check_room
from shoal.cluster.supervisor import Cluster

SHAPE = Shape(agents=0)
_REPOSITORY = "bench/uploads"
_SALT = 16
_ANSWER_WITHIN = 300.0
"""Seconds: the last answers wait until a slow disk has all the others."""


@dataclass(frozen=True, slots=True)
class UploadsOutcome:
    """What `count` uploads of `size` bytes took."""

    count: int
    size: int
    wall_s: float
    idle_rss_mb: float
    """Of the proxy, before."""
    rss_mb: dict[str, float]
    """Peak, by role."""
    cpu_s: dict[str, float]


def run(
    count: int, size: int, folder: Path | None, complain: Callable[[str], None]
) -> UploadsOutcome:
    """Measure on a cluster of its own.

    Raises `NoRoom`, `TransferFailed`, `interrupt.Interrupted` or what `local_cluster` raises.
    """

    async def measure(place: Path) -> UploadsOutcome:
        async with local_cluster(SHAPE, place / "cluster", report=complain) as cluster:
            return await _measure(cluster, place, count, size)

    with TemporaryDirectory(prefix="shoal-bench-", dir=folder, ignore_cleanup_errors=True) as place:
        check_room(Path(place), size + count * size * (1 + SHAPE.origins))
        return interrupt.run(measure(Path(place)))


async def _measure(cluster: Cluster, folder: Path, count: int, size: int) -> UploadsOutcome:
    source = folder / "source"
    await asyncio.to_thread(content.write_random, source, max(0, size - _SALT))
    idle_rss_mb = Usage(cluster.pids()).rss_mb("proxy")
    usage = Usage(cluster.pids())
    wall_s = await asyncio.to_thread(
        push_at_once, cluster.layout.of("proxy")[0].url(), source, count
    )
    return UploadsOutcome(
        count=count,
        size=size,
        wall_s=wall_s,
        idle_rss_mb=idle_rss_mb,
        rss_mb=usage.peak_rss_mb(),
        cpu_s=usage.cpu_s(),
    )


def push_at_once(registry: str, source: Path, count: int) -> float:
    """Push the file as `count` different blobs at once; return the seconds. Blocks.

    Raises `TransferFailed`.
    """
    blobs = [Salted(source, os.urandom(_SALT)) for _ in range(count)]
    start = Barrier(count + 1)

    def push(blob: Salted, digest: str) -> None:
        with RegistryConnection(registry, timeout=_ANSWER_WITHIN) as connection:
            start.wait()
            connection.push_blob(_REPOSITORY, blob, digest)

    with ThreadPoolExecutor(count, thread_name_prefix="push") as pool:
        digests = [blob.digest() for blob in blobs]
        pushes = [pool.submit(push, *each) for each in zip(blobs, digests, strict=True)]
        start.wait()
        began = time.perf_counter()
        for pushed in pushes:
            pushed.result()
        return time.perf_counter() - began
