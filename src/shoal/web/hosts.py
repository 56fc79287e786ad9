# SPDX-License-Identifier: Apache-2.0
"""A list of hosts that is followed while the service runs: the edge of `HostsConfig`.

What is asked of the DNS, and how, is in `shoal.web.lookup`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from shoal.ring.config import HostsConfig

SOONEST = 2.0
"""Seconds between two looks, however short the TTL."""

LATEST = 30.0
"""The same, however long the TTL: some resolvers set minutes for what changes at any moment."""

AGAIN_AFTER = 2.0
"""Seconds after a look that failed."""

Watcher = Callable[[tuple[str, ...], tuple[str, ...]], None]
"""Is told the list before and the list now."""

log = structlog.get_logger()


class HostList:
    """The hosts of one list as they are now.

    A static list never changes. One that is found by DNS is empty until the first answer, is sorted
    (answers come in any order), and is kept when the DNS fails or names nobody: services go on with
    the hosts that they know.
    """

    def __init__(self, config: HostsConfig, key: str) -> None:
        """`key` is what the config calls the list (``origins``), for logs and errors."""
        self._config = config
        self._key = key
        self._hosts = tuple(config.hosts)
        self._watchers: list[Watcher] = []
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._fault = "the DNS was not asked yet"

    @property
    def hosts(self) -> tuple[str, ...]:
        """All of them, each ``host:port``."""
        return self._hosts

    @property
    def moves(self) -> bool:
        """Whether the list may change."""
        return self._config.moves

    @property
    def source(self) -> str:
        """Where the list comes from, in words."""
        if self._config.dns is not None:
            return f"{self._key}.dns ({self._config.dns})"
        if self._config.srv is not None:
            return f"{self._key}.srv ({self._config.srv})"
        return f"{self._key}.hosts"

    def missing(self) -> list[str]:
        """Why there is no host, for a readiness check; nothing when there is one."""
        return [] if self._hosts else [self.why_empty()]

    def why_empty(self) -> str:
        """What to say where a host was needed and none is known."""
        return f"no host is known of {self.source}: {self._fault}"

    def watch(self, watcher: Watcher) -> None:
        """Tell the watcher of every change from now on, in the event loop."""
        self._watchers.append(watcher)

    async def start(self) -> None:
        """Look once, and follow the list in the background until `close`.

        Returns after at most `shoal.web.lookup.TIMEOUT` seconds, with or without hosts.
        """
        if self.moves and self._task is None:
            wait = await self._look()
            self._task = asyncio.create_task(self._follow(wait), name=f"follow {self.source}")

    async def close(self) -> None:
        """Follow the list no longer."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def refresh(self) -> None:
        """Look now; a look that fails changes nothing but `missing`."""
        if self.moves:
            await self._look()

    async def _follow(self, wait: float) -> None:
        while True:
            # Spread, so that services that started together do not ask together for ever.
            await asyncio.sleep(wait * random.uniform(0.9, 1.1))
            wait = await self._look()

    async def _look(self) -> float:
        """Ask once; return the seconds until it should be asked again."""
        from shoal.web import lookup  # noqa: PLC0415 25 ms of start-up, needless for a written list

        try:
            found, ttl = await lookup.find_hosts(self._config)
        except lookup.LookupFailed as error:
            if not self._failing:
                log.warning(
                    "cannot find hosts, going on with those known",
                    source=self.source,
                    known=self._hosts,
                    error=str(error),
                )
            self._failing, self._fault = True, str(error)
            return AGAIN_AFTER
        self._failing, self._fault = False, ""
        self._set(found)
        return min(max(ttl, SOONEST), LATEST)

    def _set(self, found: Sequence[str]) -> None:
        before, now = self._hosts, tuple(sorted(set(found)))
        if now == before:
            return
        self._hosts = now
        log.info(
            "hosts changed",
            source=self.source,
            joined=sorted(set(now) - set(before)),
            left=sorted(set(before) - set(now)),
        )
        for watcher in self._watchers:
            watcher(before, now)
