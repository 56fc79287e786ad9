# SPDX-License-Identifier: Apache-2.0
"""Does to a running cluster what the plan says, and undoes it."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import structlog

from shoal.chaos.network import Network
from shoal.chaos.plan import Fault, Kind
from shoal.chaos.storage import Storage
from shoal.cluster.supervisor import Cluster, StartFailed
from shoal.store.threads import in_thread

RESTART_WITHIN = 60.0
"""Seconds for a service to be ready again."""

log = structlog.get_logger()


class Monkey:
    """Breaks one thing at a time, and mends it."""

    def __init__(self, cluster: Cluster, network: Network, storage: Storage) -> None:
        self._cluster = cluster
        self._network = network
        self._storage = storage
        self.done: Counter[str] = Counter()
        """Faults by kind."""

    async def strike(self, fault: Fault) -> None:
        """Do one fault, and undo it after its time; also when cancelled."""
        log.info("fault", kind=fault.kind.value, target=fault.target, seconds=fault.seconds)
        self.done[fault.kind.value] += 1
        try:
            await self._begin(fault)
            await asyncio.sleep(fault.seconds)
        finally:
            await asyncio.shield(self._end(fault))

    async def _begin(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL:
                await self._cluster.kill(fault.target)
            case Kind.WIPE:
                await self._cluster.kill(fault.target)
                await in_thread(self._wipe, fault.target)
            case Kind.STOP:
                self._signal(fault.target, signal.SIGSTOP)
            case Kind.FILL:
                self._limit_files(fault.target, 0)
            case Kind.CUT:
                self._network.cut(fault.target)
            case Kind.BACKEND:
                self._storage.up = False
            case Kind.BLACKOUT:
                await asyncio.gather(*map(self._cluster.kill, self._names()))

    async def _end(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL | Kind.WIPE:
                await self._restart(fault.target)
            case Kind.STOP:
                self._signal(fault.target, signal.SIGCONT)
            case Kind.FILL:
                self._limit_files(fault.target, resource.RLIM_INFINITY)
            case Kind.CUT:
                self._network.join(fault.target)
            case Kind.BACKEND:
                self._storage.up = True
            case Kind.BLACKOUT:
                await asyncio.gather(*map(self._restart, self._names()))

    async def _restart(self, name: str) -> None:
        try:
            await self._cluster.restart(name, RESTART_WITHIN)
        except StartFailed as error:
            log.warning("slow to be ready", service=name, error=str(error))

    def _wipe(self, name: str) -> None:
        [member] = [member for member in self._cluster.layout.members if member.name == name]
        folder = Path(member.config["data_dir"])
        shutil.rmtree(folder)
        folder.mkdir()

    def _signal(self, name: str, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._cluster.pids()[name], number)

    def _limit_files(self, name: str, size: int) -> None:
        """The size that files of the service may have: EFBIG, as from a disk with no room."""
        with suppress(ProcessLookupError):
            resource.prlimit(
                self._cluster.pids()[name], resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)
            )

    def _names(self) -> list[str]:
        return [member.name for member in self._cluster.layout.members]
