# SPDX-License-Identifier: Apache-2.0
"""Requests per second of the registry API, at the proxy and at an agent; and small pushes.

Services and load generator share the machine. So what is to be compared is not only the rate: every
figure comes with the CPU seconds of the service that answered, and of those that it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from shoal.bench.api_images import TinyImage, add_tags, push_image, tiny_image
from shoal.bench.client import download
from shoal.bench.load import Load, Loaded, put_under_load
from shoal.bench.usage import Usage
from shoal.cluster import interrupt
from shoal.cluster.layout import Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.room import check_room
from shoal.cluster.supervisor import Cluster

SHAPE = Shape(agents=1)
LAYERS = 60
"""Layers of the image whose push is measured."""

PAGE = 1000
REPOSITORY = "bench/api"
_TAG = "latest"
_PUSHES = 3
_WARM_S = 0.3
_DISK_NEEDED = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request."""

    name: str
    method: str
    targets: Sequence[str]


@dataclass(frozen=True, slots=True)
class Manner:
    """How it is sent."""

    connections: int
    keep_alive: bool


MANNERS = (Manner(1, keep_alive=True), Manner(64, keep_alive=True), Manner(64, keep_alive=False))


@dataclass(frozen=True, slots=True)
class Figure:
    """What one service did with one kind of request, sent in one manner."""

    service: str
    case: Case
    manner: Manner
    loaded: Loaded
    cpu_s: dict[str, float]
    """By role, while the load ran."""

    @property
    def per_second(self) -> float:
        """Answers per second of wall time."""
        return self.loaded.requests / self.loaded.wall_s

    @property
    def per_core(self) -> float | None:
        """Answers per CPU second of the service; None when it used less than can be measured."""
        spent = self.cpu_s[self.service]
        return self.loaded.requests / spent if spent > 0 else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All figures of one run."""

    tags: int
    seconds: float
    figures: Sequence[Figure]
    push_s: Sequence[float]
    """Of images of `LAYERS` layers, each a new one."""
    rss_mb: dict[str, float]
    """Peak, by role."""


def run(tags: int, seconds: float, folder: Path | None, complain: Callable[[str], None]) -> Outcome:
    """Measure on a cluster of its own, each figure for `seconds`.

    Raises `NoRoom`, `TransferFailed`, `interrupt.Interrupted` or what `local_cluster` raises.
    """

    async def measure(place: Path) -> Outcome:
        async with local_cluster(SHAPE, place / "cluster", report=complain) as cluster:
            return await _measure(cluster, tags, seconds)

    with TemporaryDirectory(prefix="shoal-bench-", dir=folder, ignore_cleanup_errors=True) as place:
        check_room(Path(place), _DISK_NEEDED)
        return interrupt.run(measure(Path(place)))


async def _measure(cluster: Cluster, tags: int, seconds: float) -> Outcome:
    proxy = cluster.layout.of("proxy")[0].url()
    push_s = [
        await asyncio.to_thread(push_image, proxy, f"bench/push-{number}", tiny_image(LAYERS), _TAG)
        for number in range(_PUSHES)
    ]
    image = tiny_image(1)
    await asyncio.to_thread(push_image, proxy, REPOSITORY, image, _TAG)
    names = [f"v{number:05}" for number in range(tags - 1)]
    await asyncio.to_thread(add_tags, proxy, REPOSITORY, image, names)
    figures: list[Figure] = []
    for service in ("proxy", "agent"):
        base = cluster.layout.of(service)[0].url()
        for digest in image.blobs:
            # An agent is asked about images that it runs: it has them.
            await asyncio.to_thread(download, f"{base}/v2/{REPOSITORY}/blobs/{digest}")
        figures += [
            await _figure(cluster, service, case, manner, seconds)
            for case in cases(image, [_TAG, *names])
            for manner in MANNERS
        ]
    return Outcome(
        tags=tags,
        seconds=seconds,
        figures=figures,
        push_s=push_s,
        rss_mb=Usage(cluster.pids()).peak_rss_mb(),
    )


def cases(image: TinyImage, tags: Sequence[str]) -> Iterator[Case]:
    """Yield the requests; the pages of the tags are asked for in turn."""
    base = f"/v2/{REPOSITORY}"
    blob = next(iter(image.blobs))
    yield Case("HEAD manifest by tag", "HEAD", [f"{base}/manifests/{_TAG}"])
    yield Case("GET manifest by tag", "GET", [f"{base}/manifests/{_TAG}"])
    yield Case("GET manifest by digest", "GET", [f"{base}/manifests/{image.digest}"])
    yield Case("HEAD blob", "HEAD", [f"{base}/blobs/{blob}"])
    ends = sorted(tags)[PAGE - 1 : -1 : PAGE]
    first = f"{base}/tags/list?n={PAGE}"
    yield Case("GET tags, a page", "GET", [first, *(f"{first}&last={end}" for end in ends)])


async def _figure(
    cluster: Cluster, service: str, case: Case, manner: Manner, seconds: float
) -> Figure:
    address = cluster.layout.of(service)[0].url().removeprefix("http://")

    def load(duration: float) -> Load:
        return Load(
            address=address,
            method=case.method,
            targets=case.targets,
            connections=manner.connections,
            seconds=duration,
            keep_alive=manner.keep_alive,
        )

    await put_under_load(load(_WARM_S))
    usage = Usage(cluster.pids())
    loaded = await put_under_load(load(seconds))
    return Figure(service, case, manner, loaded, usage.cpu_s())
