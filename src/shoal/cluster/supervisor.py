# SPDX-License-Identifier: Apache-2.0
"""Start every service of a layout, wait until all can do their job, and stop them all.

A service that dies later is reported and stays dead: a restart would hide the fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from shoal.cluster.layout import Layout, Member
from shoal.cluster.process import ServiceProcess
from shoal.cluster.readiness import ReadinessProbe

READY_WITHIN = 60.0
"""Seconds that a cluster has to become ready."""

STOP_WITHIN = 9.5
"""Seconds that the services have to drain and stop before they are killed."""

Flags = Mapping[str, Sequence[str]]
"""More options for the command line of each service of a role."""

NO_FLAGS: Flags = {}

Launchers = Mapping[str, Sequence[str]]
"""What starts a service, by its name, when it is not to run as a plain child."""

NO_LAUNCHERS: Launchers = {}


class StartFailed(Exception):
    """The cluster did not become ready; the message says in a line which service, and why.

    `details` has more lines: of each service's log, or what each one lacks.
    """

    def __init__(self, message: str, details: Sequence[str]) -> None:
        super().__init__(message)
        self.details = tuple(details)


class DataDirInUse(Exception):
    """Another cluster has its data in this folder."""


class Cluster:
    """The running services of a layout."""

    def __init__(
        self,
        layout: Layout,
        report: Callable[[str], None],
        flags: Flags = NO_FLAGS,
        launchers: Launchers = NO_LAUNCHERS,
    ) -> None:
        self.layout = layout
        self._flags = flags
        self._launchers = launchers
        self._report = report
        self._processes: dict[str, ServiceProcess] = {}
        self._killed: set[ServiceProcess] = set()
        self._ready = False
        self._stopping = False
        self._death = asyncio.Event()
        self._empty = asyncio.Event()

    def pids(self) -> dict[str, int]:
        """Process ids by service name, of the dead ones too."""
        return {name: process.pid for name, process in self._processes.items()}

    async def wait_empty(self) -> None:
        """Wait until no service is left."""
        await self._empty.wait()

    def start(self) -> None:
        """Start a process for each service."""
        for member in self.layout.members:
            self._start(member)

    def _start(self, member: Member) -> None:
        self._processes[member.name] = ServiceProcess(
            member.name,
            member.role,
            config_path=member.config_path,
            log_path=member.log_path,
            on_exit=self._exited,
            flags=self._flags.get(member.role, ()),
            launcher=self._launchers.get(member.name, ()),
        )

    async def kill(self, name: str) -> None:
        """End one service with SIGKILL, to see what survives that; `restart` brings it back."""
        process = self._processes[name]
        self._killed.add(process)
        process.kill()
        await process.wait()

    async def restart(self, name: str, within: float = READY_WITHIN) -> None:
        """Start a service that has ended, and wait until it is ready; raise `StartFailed`."""
        [member] = [member for member in self.layout.members if member.name == name]
        self._start(member)
        probe = ReadinessProbe([member])
        try:
            async with asyncio.timeout(within):
                await probe.run()
        except TimeoutError:
            raise self._late(probe, within) from None

    async def wait_ready(self, within: float) -> None:
        """Wait until all services are ready; raise `StartFailed` when one dies or time is up."""
        probe = ReadinessProbe(self.layout.members)
        ready = asyncio.ensure_future(probe.run())
        death = asyncio.ensure_future(self._death.wait())
        try:
            async with asyncio.timeout(within):
                await asyncio.wait((ready, death), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise self._late(probe, within) from None
        finally:
            for task in (ready, death):
                task.cancel()
            await asyncio.gather(ready, death, return_exceptions=True)
        dead = [process for process in self._processes.values() if not process.running]
        if dead:
            raise StartFailed(
                "; ".join(process.describe_exit() for process in dead),
                [line for process in dead for line in _obituary(process)],
            )
        ready.result()
        self._ready = True

    async def stop(self) -> None:
        """Stop all services: SIGTERM, then SIGKILL for those that need longer than they may.

        Cancelled while it waits, it kills what is left at once and still waits for the end.
        """
        self._stopping = True
        for process in self._processes.values():
            process.terminate()
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout(STOP_WITHIN):
                await self._all_exited()
        for process in self._processes.values():
            if process.running:
                self._report(f"{process.name} (pid {process.pid}) had to be killed")
                process.kill()
        await self._all_exited()

    async def _all_exited(self) -> None:
        await asyncio.gather(*(process.wait() for process in self._processes.values()))

    def _exited(self, process: ServiceProcess) -> None:
        if self._ready and not self._stopping and process not in self._killed:
            for line in _obituary(process):
                self._report(line)
        self._death.set()
        if not any(other.running for other in self._processes.values()):
            self._empty.set()

    def _late(self, probe: ReadinessProbe, within: float) -> StartFailed:
        unready = probe.unready()
        details = []
        for name, why in unready.items():
            process = self._processes[name]
            details.append(f"{name} (pid {process.pid}): {why}; log: {process.log_path}")
        return StartFailed(f"not ready within {within:g} s: {', '.join(unready)}", details)


@asynccontextmanager
async def running(
    layout: Layout,
    *,
    report: Callable[[str], None],
    flags: Flags = NO_FLAGS,
    launchers: Launchers = NO_LAUNCHERS,
    ready_within: float = READY_WITHIN,
) -> AsyncIterator[Cluster]:
    """Run a cluster that is ready, and stop it on the way out whatever happens.

    `report` is given one line at a time about services that died or had to be killed.
    Raises `StartFailed`, or `DataDirInUse`.
    """
    with _locked(layout.data_dir):
        _write_configs(layout.members)
        cluster = Cluster(layout, report, flags, launchers)
        try:
            cluster.start()
            await cluster.wait_ready(ready_within)
            yield cluster
        finally:
            await cluster.stop()


def _obituary(process: ServiceProcess) -> list[str]:
    return [process.describe_exit(), *(f"    {line}" for line in process.log_tail())]


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataDirInUse(
                f"{data_dir} is in use by another cluster: choose another folder, or stop that one"
            ) from error
        os.set_inheritable(lock.fileno(), False)
        yield


def _write_configs(members: tuple[Member, ...]) -> None:
    for member in members:
        for folder in (member.config_path.parent, member.log_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        member.config_path.write_text(yaml.safe_dump(member.config, sort_keys=False))
