# SPDX-License-Identifier: Apache-2.0
"""The race between a tag and what it needs: the same pushes and faults against four set-ups.

The services are real, and so are the pushes. Between an origin's acknowledgement and what others
can see of it, faults are injected (`shoal.origin.faults`), the same ones for every set-up. What
differs is how the proxy and the build-index are configured, and nothing else.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from shoal.bench.race_images import Image, images, manifest_digests
from shoal.bench.race_metrics import Resolutions, resolutions
from shoal.bench.race_pushes import Pushers, lost
from shoal.buildindex.config import ResolverConfig
from shoal.cluster import interrupt
from shoal.cluster.layout import Overrides, Shape, merge
from shoal.cluster.local import local_cluster
from shoal.cluster.room import check_room
from shoal.cluster.supervisor import Cluster
from shoal.origin.client import OriginCluster
from shoal.origin.faults import PATH as FAULTS
from shoal.origin.faults import FaultPlan, FaultReport
from shoal.proxy.config import MANIFEST_TIME
from shoal.registry.client import RegistryClient
from shoal.ring.config import OriginsConfig
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline

SHAPE = Shape(agents=0)
DOWN_S = 3.0
"""Seconds for which the killed origin is away, its start not included."""

LONGEST_WAIT = 2.0
"""Seconds between attempts at most, where the delays ask for more than the default attempts."""

_DISK_PER_PUSH = 1_000_000
_ASK_WITHIN = 10.0

Late = Literal["manifests", "all"]
"""Which blobs may become visible late."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to configure proxy and build-index."""

    name: str
    overrides: Overrides
    own: bool = False
    """One of Shoal's own: it is as patient as the delays ask for, and it loses an origin."""

    def config(self, max_delay: float) -> Overrides:
        """What is laid over the config of each role when delays are up to `max_delay` seconds."""
        return merge(self.overrides, _patience(max_delay)) if self.own else self.overrides


def _patience(max_delay: float) -> Overrides:
    """Nothing while the default retries outlast the delays; then as many more as it takes.

    The proxy is told, as it refuses to wait for less than the build-index retries.
    """
    default = policy = ResolverConfig().existence
    while policy.longest() * (1 - policy.jitter) / (1 + policy.jitter) < max_delay:
        policy = policy.model_copy(update={"cap": LONGEST_WAIT, "attempts": policy.attempts + 1})
    if policy == default:
        return {}
    retries = math.ceil(policy.longest() + ResolverConfig().manifest.longest())
    return {
        "build-index": {"resolver": {"existence": policy.model_dump(mode="json")}},
        "proxy": {
            "index_retries": f"{retries}s",
            "request_timeout": f"{math.ceil(MANIFEST_TIME) + max(24, retries)}s",
        },
    }


_ONCE = {"attempts": 1}
_PR_502 = {"attempts": 4, "initial": "500ms", "factor": 2.0, "jitter": 0.05, "cap": "30s"}
_TAGS_BEFORE_DELIVERY = {"push": [{"pattern": ".*", "mode": "write_back", "await_delivery": False}]}

SETUPS = {
    setup.name: setup
    for setup in (
        # Kraken before its PR #502: the tag write does not wait, the manifest is asked for once.
        Setup(
            "write_back_no_retry",
            {
                "proxy": _TAGS_BEFORE_DELIVERY,
                "build-index": {"resolver": {"manifest": _ONCE, "existence": _ONCE}},
            },
        ),
        # Kraken with it: the download of the manifest is repeated, the other checks are not.
        Setup(
            "write_back_retry",
            {
                "proxy": _TAGS_BEFORE_DELIVERY,
                "build-index": {"resolver": {"manifest": _PR_502, "existence": _ONCE}},
            },
        ),
        Setup(
            "write_back",
            {"proxy": {"push": [{"pattern": ".*", "mode": "write_back"}]}},
            own=True,
        ),
        Setup("write_through", {}, own=True),
    )
}
"""Every set-up by its name, in the order in which they are run."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is pushed, and what goes wrong."""

    pushes: int = 500
    seed: int = 1
    late: Late = "manifests"
    late_share: float = 0.1
    max_delay: float = 3.0
    fail_rate: float = 0.01
    head_start: float = 1.0
    """Seconds that an image's blobs are ahead of its manifests: those of large images are."""
    kill_origin: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one set-up came to."""

    name: str
    pushes: int
    failures: int
    """Pushes that failed, and acknowledged ones of which something was lost."""
    resolutions: Resolutions
    tag_seconds: Sequence[float]
    """Of the acknowledged tag writes, as the client sees them."""
    failed_with: Mapping[str, int]
    lost: int
    faults: Sequence[FaultReport]
    wall_s: float
    killed: str | None = field(default=None)


def run(
    names: Sequence[str],
    conditions: Conditions,
    folder: Path | None,
    *,
    complain: Callable[[str], None],
) -> list[Outcome]:
    """Run the set-ups in turn, with data below `folder`, or where temporary files are.

    `complain` is told about services that die by themselves. Raises `NoRoom`, `CallFailed`,
    `interrupt.Interrupted` or what `local_cluster` raises.
    """
    outcomes = []
    pushed = list(images(conditions.seed, conditions.pushes))
    for name in names:
        with TemporaryDirectory(
            prefix="shoal-bench-", dir=folder, ignore_cleanup_errors=True
        ) as place:
            check_room(Path(place), conditions.pushes * _DISK_PER_PUSH)
            outcomes.append(
                interrupt.run(_measure(SETUPS[name], conditions, pushed, Path(place), complain))
            )
    return outcomes


async def _measure(
    setup: Setup,
    conditions: Conditions,
    pushed: Sequence[Image],
    place: Path,
    complain: Callable[[str], None],
) -> Outcome:
    async with local_cluster(
        SHAPE,
        place / "cluster",
        report=complain,
        overrides=setup.config(conditions.max_delay),
        flags={"origin": ["--faults"]},
    ) as cluster:
        http = HttpClient(user_agent="shoal-bench")
        try:
            return await _Race(cluster, http, setup, conditions).run(pushed)
        finally:
            await http.close()


class _Race:
    """One set-up in its cluster."""

    def __init__(
        self, cluster: Cluster, http: HttpClient, setup: Setup, conditions: Conditions
    ) -> None:
        self._cluster = cluster
        self._http = http
        self._setup = setup
        self._conditions = conditions
        self._plans: dict[str, FaultPlan] = {}
        self._reports: list[FaultReport] = []

    async def run(self, pushed: Sequence[Image]) -> Outcome:
        layout = self._cluster.layout
        registry = RegistryClient(self._http, layout.of("proxy")[0].url())
        self._plan(pushed)
        for name in self._plans:
            await self._inject(name)
        pushers = Pushers(registry, self._conditions.head_start)
        began = time.perf_counter()
        killing = self._setup.own and self._conditions.kill_origin
        killed = next(iter(self._plans)) if killing else None
        losing = asyncio.create_task(self._lose(killed, pushers, len(pushed)))
        try:
            await pushers.push(pushed)
            await losing
        finally:
            losing.cancel()
        wall_s = time.perf_counter() - began
        for name in self._plans:
            await self._stop_faults(name)
        metrics = await self._http.call(
            "GET",
            f"{layout.of('build-index')[0].url()}/metrics",
            deadline=Deadline.after(_ASK_WITHIN),
        )
        result = pushers.pushed
        missing = await lost(result.acknowledged, registry, self._ring())
        return Outcome(
            name=self._setup.name,
            pushes=len(pushed),
            failures=result.failed_with.total() + missing,
            resolutions=resolutions(metrics.body.decode()),
            tag_seconds=result.tag_seconds,
            failed_with=dict(result.failed_with.most_common()),
            lost=missing,
            faults=self._reports,
            wall_s=wall_s,
            killed=killed,
        )

    def _plan(self, pushed: Sequence[Image]) -> None:
        conditions = self._conditions
        only = manifest_digests(pushed) if conditions.late == "manifests" else None
        for origin in self._cluster.layout.of("origin"):
            self._plans[origin.name] = FaultPlan(
                seed=conditions.seed,
                origin=origin.name,
                late_share=conditions.late_share,
                max_delay=conditions.max_delay,
                only=only,
                fail_rate=conditions.fail_rate,
            )

    async def _lose(self, name: str | None, pushers: Pushers, pushes: int) -> None:
        """Kill this origin when a third of the pushes has ended, and bring it back."""
        if name is None:
            return
        await pushers.ended(-(-pushes // 3))
        self._reports.append(await self._report(name))
        await self._cluster.kill(name)
        await asyncio.sleep(DOWN_S)
        await self._cluster.restart(name)
        await self._inject(name)

    async def _inject(self, name: str) -> None:
        await self._faults("PUT", name, self._plans[name])

    async def _stop_faults(self, name: str) -> None:
        self._reports.append(await self._report(name))
        await self._faults("PUT", name, FaultPlan())

    async def _report(self, name: str) -> FaultReport:
        answer = await self._faults("GET", name)
        return answer.decode(FaultReport)

    async def _faults(self, method: str, name: str, plan: FaultPlan | None = None) -> Answer:
        [origin] = [member for member in self._cluster.layout.members if member.name == name]
        return await self._http.call(
            method,
            f"{origin.url()}{FAULTS}",
            json=plan,
            deadline=Deadline.after(_ASK_WITHIN),
            expect=(200, 204),
        )

    def _ring(self) -> OriginCluster:
        hosts = self._cluster.layout.of("proxy")[0].config["origins"]["hosts"]
        return OriginCluster(self._http, OriginsConfig(hosts=hosts))
