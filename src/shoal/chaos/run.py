# SPDX-License-Identifier: Apache-2.0
"""One run of chaos: a cluster, its clients, its faults, and the count of what was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from shoal.chaos.faults import Monkey
from shoal.chaos.ledger import Ledger, Pushed
from shoal.chaos.network import Network
from shoal.chaos.plan import Fault, Kind, faults
from shoal.chaos.report import Outcome
from shoal.chaos.storage import Storage
from shoal.chaos.traffic import Reader, Writer, WrongBytes, pull
from shoal.cluster import interrupt
from shoal.cluster.layout import HOST, Overrides, Shape, lay_out, merge
from shoal.cluster.ports import reserve
from shoal.cluster.room import check_room
from shoal.cluster.supervisor import Cluster, running
from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.registry.client import RegistryClient
from shoal.ring.config import OriginsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

SHAPE = Shape(proxies=2, origins=4, trackers=2, build_indexes=2, agents=3)
"""The last agent has no part in the run: it is the fresh one that everything is pulled from."""

WRITERS = 3
READERS = 3

PATIENCE = 10.0
"""Seconds for which a client waits for one answer."""

REPAIRED_WITHIN = 120.0
"""Seconds after which what was wiped must be whole again."""

SETTLED_WITHIN = 60.0
"""Seconds, with no more faults, for a pull of the last count to succeed."""

DISK_NEEDED = 4_000_000_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Conditions:
    """How long, with which seed, and how much fails of what the storage is asked."""

    seconds: float
    seed: int
    flaky: float = 0.05


def run(conditions: Conditions, folder: Path | None, *, complain: Callable[[str], None]) -> Outcome:
    """Run with data below `folder`, or where temporary files are.

    `complain` is told about services that die by themselves. Raises `NoRoom`,
    `PortsTaken`, `StartFailed` or `interrupt.Interrupted`.
    """
    with TemporaryDirectory(prefix="shoal-chaos-", dir=folder, ignore_cleanup_errors=True) as place:
        check_room(Path(place), DISK_NEEDED)
        return interrupt.run(_run(conditions, Path(place), complain))


async def _run(conditions: Conditions, place: Path, complain: Callable[[str], None]) -> Outcome:
    storage = Storage(place / "storage", conditions.seed, conditions.flaky)
    network = Network(SHAPE)
    http = HttpClient(user_agent="shoal-chaos")
    try:
        await storage.listen(HOST)
        await network.listen()
        config = merge(network.overrides(), _backends(storage))
        with reserve(SHAPE.ports()) as ports:
            layout = lay_out(SHAPE, place / "cluster", ports.first, config)
            network.connect(layout)
            async with running(layout, report=complain) as cluster:
                return await _Chaos(conditions, cluster, network, storage, http).run()
    finally:
        await http.close()
        await network.close()
        await storage.close()


def _backends(storage: Storage) -> Overrides:
    backends = [
        {"match": ".*", "kind": "webhdfs", "name_nodes": [storage.address], "root": "shoal"},
    ]
    return {
        "origin": {
            "backends": backends,
            "writeback": {"stagger": "3s"},
            "repair": {"interval": "30s"},
        },
        "build-index": {"backends": backends},
    }


class _Chaos:
    """The parts of one run."""

    def __init__(
        self,
        conditions: Conditions,
        cluster: Cluster,
        network: Network,
        storage: Storage,
        http: HttpClient,
    ) -> None:
        self._conditions = conditions
        self._cluster = cluster
        self._monkey = Monkey(cluster, network, storage)
        self._storage = storage
        self._ledger = Ledger()
        layout = cluster.layout
        self._proxies = [
            RegistryClient(http, member.url(), timeout=PATIENCE) for member in layout.of("proxy")
        ]
        agents = [
            RegistryClient(http, member.url(), timeout=PATIENCE) for member in layout.of("agent")
        ]
        self._agents, self._fresh = agents[:-1], agents[-1]
        hosts = layout.of("proxy")[0].config["origins"]["hosts"]
        self._origins = OriginCluster(http, OriginsConfig(hosts=hosts))
        self._repairs: list[float] = []
        self._unrepaired = 0

    async def run(self) -> Outcome:
        began = time.monotonic()
        async with self._traffic():
            await self._break_things(began + self._conditions.seconds)
        self._storage.up = True
        lost = await self._lost()
        ledger = self._ledger
        return Outcome(
            operations=ledger.operations.total(),
            pushes=ledger.operations["push"],
            pulls=ledger.operations["pull"],
            failures=dict(ledger.failures.most_common()),
            faults=dict(self._monkey.done),
            storage_faults=self._storage.failures,
            acknowledged=len(ledger.acknowledged),
            lost=len(lost),
            lost_names=[f"{it.repository}:{it.tag} {it.root}" for it in lost[:20]],
            wrong_bytes=ledger.wrong_bytes,
            longest_unavailable_s=round(ledger.longest_unavailable, 2),
            longest_repair_s=round(max(self._repairs, default=0.0), 2),
            unrepaired=self._unrepaired,
            seconds=round(time.monotonic() - began, 1),
            seed=self._conditions.seed,
        )

    @asynccontextmanager
    async def _traffic(self) -> AsyncIterator[None]:
        seed, ledger = self._conditions.seed, self._ledger
        writers = [Writer(n, seed, self._proxies, ledger).run() for n in range(WRITERS)]
        readers = [Reader(n, seed, self._agents, ledger).run() for n in range(READERS)]
        clients = [asyncio.create_task(client) for client in (*writers, *readers)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            outcomes = await asyncio.gather(*clients, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome

    async def _break_things(self, until: float) -> None:
        plan = faults(self._conditions.seed, SHAPE)
        while (left := until - time.monotonic()) > 0:
            fault = next(plan)
            if self._spares(fault):
                continue
            await asyncio.sleep(min(fault.pause, left))
            await self._monkey.strike(fault)
            if fault.kind is Kind.WIPE and fault.target.startswith("origin-"):
                await self._whole_again()

    def _spares(self, fault: Fault) -> bool:
        return fault.target == f"agent-{SHAPE.agents - 1}"

    async def _whole_again(self) -> None:
        """Wait until every acknowledged blob has all its copies: the promise of a single loss."""
        began = time.monotonic()
        digests = _digests(self._ledger.acknowledged)
        thin = await self._thin(digests)
        while thin and time.monotonic() - began < REPAIRED_WITHIN:
            await asyncio.sleep(0.5)
            thin = await self._thin(thin)
        if thin:
            self._unrepaired += len(thin)
            log.error("not repaired", blobs=len(thin), such_as=str(thin[0]))
        self._repairs.append(time.monotonic() - began)

    async def _thin(self, digests: Sequence[Digest]) -> list[Digest]:
        presence = await self._origins.stat_many(digests, deadline=Deadline.after(PATIENCE))
        return [
            digest
            for digest in digests
            if not presence.copies.get(digest, frozenset()) >= set(self._origins.owners(digest))
        ]

    async def _lost(self) -> list[Pushed]:
        """Pull every acknowledged push from an agent that has nothing; those that did not come."""
        latest = {(it.repository, it.tag): it for it in self._ledger.latest()}
        waiting = iter(self._ledger.acknowledged)
        lost: list[Pushed] = []

        async def work() -> None:
            for pushed in waiting:
                by_tag = latest[pushed.repository, pushed.tag] is pushed
                if not await self._is_there(pushed, by_tag=by_tag):
                    lost.append(pushed)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(work())
        return lost

    async def _is_there(self, pushed: Pushed, *, by_tag: bool) -> bool:
        began = time.monotonic()
        try:
            return await self._comes(pushed, by_tag=by_tag)
        finally:
            self._ledger.waited(time.monotonic() - began)

    async def _comes(self, pushed: Pushed, *, by_tag: bool) -> bool:
        deadline = Deadline.after(SETTLED_WITHIN)
        while True:
            try:
                await pull(self._fresh, pushed, by_tag=False)
                if not by_tag:
                    return True
                found = await pull(self._fresh, pushed, by_tag=True)
                if found in self._ledger.may_be(pushed.repository, pushed.tag):
                    return True
                why = f"{pushed.tag} is {found}"
            except CallFailed as error:
                why = str(error)
            except WrongBytes as error:
                self._ledger.wrong()
                log.error("wrong bytes", error=str(error))  # noqa: TRY400 -- it says all there is
                return True
            if deadline.expired:
                log.error("lost", repository=pushed.repository, tag=pushed.tag, error=why)
                return False
            await asyncio.sleep(1.0)


def _digests(pushed: Sequence[Pushed]) -> list[Digest]:
    every = {digest: None for it in pushed for digest, _ in it.contents}
    return [*every, *(it.root for it in pushed)]
