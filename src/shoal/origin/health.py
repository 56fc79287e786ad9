# SPDX-License-Identifier: Apache-2.0
"""Health of the ring's members: failures of real calls, and checks at intervals."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import structlog

from shoal.ring.checks import Checks
from shoal.ring.config import HealthConfig
from shoal.ring.health import Health
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

log = structlog.get_logger()


class MembersHealth:
    """What real calls and checks say of the members, together.

    A failed call puts a host behind the others for a while and has it checked at once; only checks
    make it unhealthy, and healthy again. Without `start` there are no checks.
    """

    def __init__(
        self, http: HttpClient, config: HealthConfig, changed: Callable[[str, bool], None]
    ) -> None:
        """`changed` is told of each host that became healthy (True) or unhealthy."""
        self._http = http
        self._timeout = config.timeout
        self._interval = config.interval
        self._changed = changed
        self._passive = Health()
        self._checks = Checks(
            interval=config.interval,
            fails=config.fails,
            passes=config.passes,
            rng=random.Random(),
        )
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    # -- what is known ------------------------------------------------------------------------

    def healthy(self, host: str) -> bool:
        """Whether its checks say so, if there are any."""
        return self._checks.healthy(host)

    def order(self, hosts: Iterable[str]) -> list[str]:
        """The hosts as given; behind them those that failed lately, last the unhealthy ones."""
        return sorted(
            self._passive.order(hosts, time.monotonic()), key=lambda host: not self.healthy(host)
        )

    def ok(self, host: str) -> None:
        """The host answered a call, whatever it said."""
        self._passive.ok(host, time.monotonic())

    def failed(self, host: str) -> None:
        """A call could not be made, or the host could not answer it."""
        now = time.monotonic()
        self._passive.failed(host, now)
        self._checks.suspect(host, now)
        self._wake.set()

    # -- checks -------------------------------------------------------------------------------

    def follow(self, hosts: Sequence[str]) -> None:
        """These are the members from now on."""
        if self._loop is not None:
            self._checks.follow(hosts, time.monotonic())
            self._wake.set()

    def start(self, hosts: Sequence[str]) -> None:
        """Check the members at intervals from now on, if the config says so."""
        if self._interval and self._loop is None:
            self._loop = asyncio.create_task(self._check_when_due(), name="health checks")
            self.follow(hosts)

    async def close(self) -> None:
        """End the checks."""
        if self._loop is None:
            return
        self._loop.cancel()
        with suppress(asyncio.CancelledError):
            await self._loop
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._loop = None

    async def _check_when_due(self) -> None:
        while True:
            self._wake.clear()
            for host in self._checks.due(time.monotonic()):
                if host not in self._running:
                    task = asyncio.create_task(self._check(host), name=f"health of {host}")
                    self._running[host] = task
            due = self._checks.next_due()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(_loop_time(due)):
                    await self._wake.wait()

    async def _check(self, host: str) -> None:
        try:
            deadline = Deadline.after(self._timeout)
            await self._http.call("GET", self._http.url(host, "/health"), deadline=deadline)
        except CallFailed as error:
            if self._checks.failed(host):
                log.warning("origin is unhealthy", origin=host, error=error.detail)
                self._changed(host, False)
        else:
            self._passive.ok(host, time.monotonic())
            if self._checks.passed(host):
                log.info("origin is healthy again", origin=host)
                self._changed(host, True)
        finally:
            del self._running[host]


def _loop_time(moment: float | None) -> float | None:
    """The monotonic moment on the clock of the event loop."""
    if moment is None:
        return None
    return asyncio.get_running_loop().time() + moment - time.monotonic()
