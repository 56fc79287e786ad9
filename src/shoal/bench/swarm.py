# SPDX-License-Identifier: Apache-2.0
"""Many agents pull one fresh blob at the same time: real processes on one machine.

Without a limit this measures what a byte costs; with one, how close the swarm comes to the line.
The limit is Shoal's own, or the kernel's between network namespaces (`shoal.bench.swarm_network`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from shoal.bench import content
from shoal.bench.client import TransferFailed, push_blob
from shoal.bench.fetch import Fetched, Fetcher, Task, fetcher
from shoal.bench.memory import warm_memory
from shoal.bench.report import GIB
from shoal.bench.swarm_network import Network, network
from shoal.bench.usage import Usage
from shoal.cluster import interrupt
from shoal.cluster.layout import Member, Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.received import Received, received
from shoal.cluster.room import check_room
from shoal.cluster.supervisor import Cluster
from shoal.config.units import format_rate
from shoal.web.client import HttpClient

_REPOSITORY = "bench/swarm"
_PATIENCE = 60.0
_SLOWEST = 10e6
"""Bytes per second that the whole swarm delivers at least: what takes longer has failed."""

_SETTLE = 30.0
_GLANCE = 0.05


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is measured, and under which limit."""

    agents: int
    size: int
    runs: int = 1
    rate: float = 0.0
    """Bytes per second of each agent and origin, in each direction; 0: no limit."""

    netns: bool = False
    """The limit is the kernel's, in network namespaces."""

    @property
    def shape(self) -> Shape:
        """The cluster."""
        return Shape(agents=self.agents)

    @property
    def disk_needed(self) -> int:
        """Bytes on disk: the source, an upload, and per run the origins' and the agents' copies."""
        copies = 2 + self.runs * (self.shape.origins + self.agents)
        return self.size * copies + self.written

    @property
    def written(self) -> int:
        """Bytes that the agents write in a run, and as much as one of them more."""
        return self.size * (self.agents + 1)

    @property
    def ideal_s(self) -> float | None:
        """Seconds that one host needs at its rate."""
        return self.size / self.rate if self.rate else None

    @property
    def patience_s(self) -> float:
        """Seconds after which a run has failed."""
        return _PATIENCE + 4 * (self.ideal_s or 0.0) + self.agents * self.size / _SLOWEST


@dataclass(frozen=True, slots=True)
class SwarmRun:
    """One blob through all agents."""

    finish_s: list[float]
    """When each agent's client had the last byte, in ascending order."""

    first_byte_s: list[float]
    from_origins: int
    from_peers: int
    cpu_s: dict[str, float]
    """By role, until every agent had verified and cached the blob."""

    other_cores: float
    """Processors that were busy with other things meanwhile, or not given to this machine. When it
    is well above 0, times say more about those than about this version."""


def run(
    conditions: Conditions, folder: Path | None, complain: Callable[[str], None]
) -> list[SwarmRun]:
    """Measure on a cluster of its own.

    Raises `NoRoom`, `TransferFailed`, `NetworkFailed`, `CallFailed`, `interrupt.Interrupted` or
    what `local_cluster` raises.
    """

    async def measure(place: Path) -> list[SwarmRun]:
        async with AsyncExitStack() as stack:
            net = None
            overrides: Mapping[str, Mapping[str, Any]] = limited(conditions.rate)
            if conditions.netns:
                net = await stack.enter_async_context(network(conditions.shape, conditions.rate))
                overrides = net.overrides
            cluster = await stack.enter_async_context(
                local_cluster(
                    conditions.shape,
                    place / "cluster",
                    report=complain,
                    overrides=overrides,
                    launchers=net.launchers if net is not None else {},
                )
            )
            http = HttpClient(user_agent="shoal-bench")
            stack.push_async_callback(http.close)
            return await _measure(cluster, http, place, conditions, net)

    with TemporaryDirectory(prefix="shoal-bench-", dir=folder, ignore_cleanup_errors=True) as place:
        check_room(Path(place), conditions.disk_needed)
        return interrupt.run(measure(Path(place)))


def limited(rate: float) -> dict[str, dict[str, Any]]:
    """The config of agents and origins that keep to a rate in each direction; 0: no limit."""
    peer = {"ingress": format_rate(rate), "egress": format_rate(rate)}
    return {"agent": {"peer": peer}, "origin": {"peer": peer}} if rate else {}


async def _measure(
    cluster: Cluster, http: HttpClient, place: Path, conditions: Conditions, net: Network | None
) -> list[SwarmRun]:
    source = place / "source"
    await asyncio.to_thread(content.write_random, source, conditions.size)
    measured = []
    for _ in range(conditions.runs):
        digest = await asyncio.to_thread(content.renew, source)
        proxy = cluster.layout.of("proxy")[0].url()
        await asyncio.to_thread(push_blob, proxy, _REPOSITORY, source, digest)
        await asyncio.to_thread(os.sync)
        if net is not None:
            await net.limit()
        measured.append(await _run(cluster, http, place, digest, conditions, net))
        if net is not None:
            await net.unlimit()
    return measured


async def _run(  # noqa: PLR0917 -- what a run is made of
    cluster: Cluster,
    http: HttpClient,
    place: Path,
    digest: str,
    conditions: Conditions,
    net: Network | None,
) -> SwarmRun:
    agents = cluster.layout.of("agent")
    before = [await received(agent, http) for agent in agents]
    async with AsyncExitStack() as stack:
        fetchers = [
            await stack.enter_async_context(
                fetcher(
                    Task([f"{agent.url()}/v2/{_REPOSITORY}/blobs/{digest}"]),
                    net.launchers[agent.name] if net is not None else (),
                )
            )
            for agent in agents
        ]
        # Last of all, so that nothing else takes it.
        await stack.enter_async_context(warm_memory(place, conditions.written))
        usage, busy, began = Usage(cluster.pids()), _busy_s(), time.perf_counter()
        fetched = await _together(fetchers, conditions.patience_s)
    after = await _settled(agents, before, http)
    cpu_s = usage.cpu_s()
    ours = sum(cpu_s.values()) + sum(it.cpu_s for it in fetched)
    others = max(0.0, _busy_s() - busy - ours) / (time.perf_counter() - began)
    came = list(zip(before, after, strict=True))
    return SwarmRun(
        finish_s=sorted(it.wall_s for it in fetched),
        first_byte_s=sorted(it.first_byte_s for it in fetched),
        from_origins=sum(new.from_origins - old.from_origins for old, new in came),
        from_peers=sum(new.from_peers - old.from_peers for old, new in came),
        cpu_s=cpu_s,
        other_cores=others,
    )


def _busy_s() -> float:
    """Seconds that the processors of this machine had no time for more, since it started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


async def _together(fetchers: list[Fetcher], within: float) -> list[Fetched]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each.go(within)) for each in fetchers]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _settled(
    agents: list[Member], before: list[Received], http: HttpClient
) -> list[Received]:
    """What the agents have received once each has verified and cached the blob."""
    try:
        async with asyncio.timeout(_SETTLE):
            while True:
                after = [await received(agent, http) for agent in agents]
                if all(
                    new.downloads > old.downloads for old, new in zip(before, after, strict=True)
                ):
                    return after
                await asyncio.sleep(_GLANCE)
    except TimeoutError as error:
        late = [
            agent.name
            for agent, old, new in zip(agents, before, after, strict=True)
            if new.downloads == old.downloads
        ]
        raise TransferFailed(
            f"{', '.join(late)}: the blob was sent but not cached within {_SETTLE:g} s: see the log"
        ) from error


def cpu_s_per_gib(measured: SwarmRun, conditions: Conditions) -> dict[str, float]:
    """CPU seconds of the services by role, per GiB that was delivered to clients."""
    delivered = conditions.agents * conditions.size / GIB
    return {role: spent / delivered for role, spent in measured.cpu_s.items()}
