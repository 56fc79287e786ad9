# SPDX-License-Identifier: Apache-2.0
"""Run one benchmark in a cluster and a folder of its own; nothing is left afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from shoal.bench import pull, push
from shoal.bench.report import Result
from shoal.cluster import interrupt
from shoal.cluster.layout import Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.room import check_room
from shoal.cluster.supervisor import Cluster


@dataclass(frozen=True, slots=True)
class Bench:
    """A benchmark: its cluster, the disk space for size and runs, and what it does."""

    shape: Shape
    disk_needed: Callable[[int, int], int]
    measure: Callable[[Cluster, Path, int, int], Awaitable[Result]]


BENCHES = {
    "push": Bench(push.SHAPE, push.disk_needed, push.measure),
    "pull": Bench(pull.SHAPE, pull.disk_needed, pull.measure),
}


def run(
    name: str, size: int, runs: int, folder: Path | None, complain: Callable[[str], None]
) -> Result:
    """Measure with data below `folder`, or where temporary files are.

    Raises `NoRoom`, `TransferFailed`, `YardstickFailed`, `interrupt.Interrupted` or what
    `local_cluster` raises.
    """
    bench = BENCHES[name]

    async def measure(place: Path) -> Result:
        async with local_cluster(bench.shape, place / "cluster", report=complain) as cluster:
            return await bench.measure(cluster, place, size, runs)

    with TemporaryDirectory(prefix="shoal-bench-", dir=folder, ignore_cleanup_errors=True) as place:
        check_room(Path(place), bench.disk_needed(size, runs))
        return interrupt.run(measure(Path(place)))
