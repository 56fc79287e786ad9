# SPDX-License-Identifier: Apache-2.0
"""What an agent costs that has many blobs to give and is asked for none of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shoal.bench.client import RegistryConnection
from shoal.bench.fetch import Task, fetcher
from shoal.bench.usage import Usage
from shoal.cluster import interrupt
from shoal.cluster.layout import Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.room import check_room
from shoal.cluster.supervisor import Cluster
from shoal.model.digest import Digest

SHAPE = Shape(agents=1)
SIZE = 300 * 1024
"""Of a blob: two pieces."""

_AT_ONCE = 4
_PATIENCE = 600.0
_REPOSITORY = "bench/idle"


@dataclass(frozen=True, slots=True)
class Idle:
    """Of the agent, which has pulled and verified all of the blobs."""

    blobs: int
    seconds: float
    cpu_s: float
    rss_mb: float
    empty_rss_mb: float
    """Before the first blob."""


def run(blobs: int, seconds: float, folder: Path | None, complain: Callable[[str], None]) -> Idle:
    """Pull so many blobs through one agent, then look on for `seconds`.

    Raises `NoRoom`, `TransferFailed`, `interrupt.Interrupted` or what `local_cluster` raises.
    """

    async def measure(place: Path) -> Idle:
        async with local_cluster(SHAPE, place / "cluster", report=complain) as cluster:
            return await _measure(cluster, blobs, seconds)

    with TemporaryDirectory(prefix="shoal-bench-", dir=folder, ignore_cleanup_errors=True) as place:
        check_room(Path(place), 6 * blobs * SIZE)
        return interrupt.run(measure(Path(place)))


async def _measure(cluster: Cluster, blobs: int, seconds: float) -> Idle:
    proxy, agent = cluster.layout.of("proxy")[0].url(), cluster.layout.of("agent")[0].url()
    empty_rss_mb = Usage(cluster.pids()).rss_mb("agent")
    digests = await asyncio.to_thread(_push, proxy, blobs)
    urls = [f"{agent}/v2/{_REPOSITORY}/blobs/{digest}" for digest in digests]
    async with fetcher(Task(urls, _AT_ONCE)) as client:
        await client.go(_PATIENCE)
    usage = Usage(cluster.pids())
    # To be idle takes time: what is measured is that nothing happens in it.
    await asyncio.sleep(seconds)
    return Idle(blobs, seconds, usage.cpu_s()["agent"], usage.rss_mb("agent"), empty_rss_mb)


def _push(proxy: str, blobs: int) -> list[str]:
    """Push the blobs; their digests. Blocks."""
    digests = []
    with RegistryConnection(proxy) as registry:
        for _ in range(blobs):
            data = os.urandom(SIZE)
            digests.append(str(Digest.of(data)))
            registry.push_blob(_REPOSITORY, data, digests[-1])
    return digests


def document(idle: Idle) -> dict[str, Any]:
    """As JSON; shares are of one core."""
    return {
        "bench": "swarm-idle",
        "blobs": idle.blobs,
        "seconds": idle.seconds,
        "core_percent": 100 * idle.cpu_s / idle.seconds,
        "rss_mb": idle.rss_mb,
        "empty_rss_mb": idle.empty_rss_mb,
    }
