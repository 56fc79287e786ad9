# SPDX-License-Identifier: Apache-2.0
"""Joins per second of one tracker, over kept connections, with many peers in one swarm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from shoal.bench.api_images import push_image, tiny_image
from shoal.bench.load import Load, Loaded, put_under_load
from shoal.bench.usage import Usage
from shoal.cluster import interrupt
from shoal.cluster.layout import Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.room import check_room
from shoal.cluster.supervisor import Cluster
from shoal.swarm.peers import PeerInfo
from shoal.tracker.messages import JoinRequest
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline

SHAPE = Shape(agents=0)
CONNECTIONS = 32
_NAMESPACE = "bench/tracker"
_DISK_NEEDED = 500_000_000
_JOIN_TIMEOUT = 30.0
_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one tracker did."""

    peers: int
    zones: int
    store: str
    loaded: Loaded
    cpu_s: float
    """Of the tracker, while it was under load."""

    rss_mb: float
    """With all peers in the swarm."""

    empty_rss_mb: float


def run(
    peers: int,
    seconds: float,
    *,
    zones: int = 1,
    store: str = "memory",
    folder: Path | None,
    complain: Callable[[str], None],
) -> Outcome:
    """Measure on a cluster of its own for `seconds`, after all `peers` have joined once.

    Raises `NoRoom`, `CallFailed`, `TransferFailed`, `interrupt.Interrupted` or what `local_cluster`
    raises.
    """

    async def measure(place: Path) -> Outcome:
        overrides = {"tracker": {"store": store}}
        async with local_cluster(
            SHAPE, place / "cluster", overrides=overrides, report=complain
        ) as cluster:
            return await _measure(cluster, peers, seconds, zones, store)

    with TemporaryDirectory(prefix="shoal-bench-", dir=folder, ignore_cleanup_errors=True) as place:
        check_room(Path(place), _DISK_NEEDED)
        return interrupt.run(measure(Path(place)))


async def _measure(cluster: Cluster, peers: int, seconds: float, zones: int, store: str) -> Outcome:
    image = tiny_image(1)
    proxy = cluster.layout.of("proxy")[0].url()
    await asyncio.to_thread(push_image, proxy, _NAMESPACE, image, "latest")
    digest = str(next(iter(image.blobs)))
    tracker = cluster.layout.of("tracker")[0].url()
    empty = Usage(cluster.pids()).rss_mb("tracker")
    bodies = [body.decode() for body in _joins(digest, peers, zones)]
    await _join_all(tracker, bodies)
    usage = Usage(cluster.pids())
    load = Load(
        address=tracker.removeprefix("http://"),
        method="POST",
        targets=["/join"],
        bodies=bodies,
        connections=CONNECTIONS,
        seconds=seconds,
        headers=_HEADERS,
    )
    loaded = await put_under_load(load)
    cpu_s = usage.cpu_s()["tracker"]
    return Outcome(peers, zones, store, loaded, cpu_s, usage.rss_mb("tracker"), empty)


def _joins(digest: str, peers: int, zones: int) -> Iterator[bytes]:
    for number in range(peers):
        host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        zone = f"zone-{number % zones}" if zones > 1 else ""
        peer = PeerInfo(f"{number:032x}", host, 5012, zone)
        yield msgspec.json.encode(JoinRequest(digest, peer, _NAMESPACE))


async def _join_all(tracker: str, bodies: list[str]) -> None:
    http = HttpClient(user_agent="shoal-bench")
    waiting = iter(bodies)

    async def join_some() -> None:
        for body in waiting:
            deadline = Deadline.after(_JOIN_TIMEOUT)
            await http.call(
                "POST", f"{tracker}/join", deadline=deadline, headers=_HEADERS, data=body.encode()
            )

    try:
        await asyncio.gather(*(join_some() for _ in range(CONNECTIONS)))
    finally:
        await http.close()


def document(outcome: Outcome) -> dict[str, Any]:
    """The figures, as `shoal bench tracker --json` prints them."""
    loaded = outcome.loaded
    return {
        "bench": "tracker",
        "peers": outcome.peers,
        "zones": outcome.zones,
        "store": outcome.store.partition(":")[0],
        "joins_per_s": loaded.requests / loaded.wall_s,
        "joins_per_cpu_s": loaded.requests / outcome.cpu_s,
        "p50_ms": loaded.p50_ms,
        "p99_ms": loaded.p99_ms,
        "rss_mb": outcome.rss_mb,
        "empty_rss_mb": outcome.empty_rss_mb,
    }
