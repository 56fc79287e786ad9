# SPDX-License-Identifier: Apache-2.0
"""Which origins answer, and under which peer id.

An origin that is down is not handed out while another one has the blob, and one that restarted is
handed out as the peer that it is now, without asking anew about every blob.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog

from shoal.swarm.peers import PeerInfo
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed
from shoal.web.hosts import HostList

INTERVAL = 3.0
"""Seconds between two questions to one origin."""

RETRY_INTERVAL = 0.5
"""The same while it does not answer."""

TIMEOUT = 2.0

log = structlog.get_logger()


class OriginWatch:
    """Asks each origin at intervals which peer it is."""

    def __init__(self, http: HttpClient, listed: HostList) -> None:
        self._http = http
        self._listed = listed
        self._peers: dict[str, PeerInfo] = {}
        self._by_address: dict[tuple[str, int], PeerInfo] = {}
        self._silent: dict[str, str] = {}
        self._up: frozenset[PeerInfo] = frozenset()
        """Those that answered the last time; every join asks for them."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Ask each origin once, then go on in the background."""
        await self.ask()
        self._moved((), self._listed.hosts)
        self._listed.watch(self._moved)

    async def stop(self) -> None:
        """End the questions."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _moved(self, before: Sequence[str], now: Sequence[str]) -> None:
        """Ask the origins that joined, too, and those that left no longer."""
        for host in set(before) - set(now):
            self._tasks.pop(host).cancel()
            self._silent.pop(host, None)
            peer = self._peers.pop(host, None)
            if peer is not None:
                self._by_address.pop((peer.host, peer.port), None)
        self._count_up()
        for host in sorted(set(now) - set(before)):
            self._tasks[host] = asyncio.create_task(self._watch(host), name=f"watch {host}")

    async def ask(self) -> None:
        """Ask each origin now."""
        await asyncio.gather(*(self._ask(host) for host in self._listed.hosts))

    def silent(self) -> dict[str, str]:
        """The origins that did not answer the last time, and why."""
        if not self._listed.hosts:
            return {self._listed.source: self._listed.why_empty()}
        return dict(self._silent)

    def reachable(self) -> bool:
        """Whether an origin answered the last time."""
        return len(self._silent) < len(self._listed.hosts)

    def alive(self, origins: Iterable[PeerInfo]) -> list[PeerInfo]:
        """The origins as they are now, without those that are down; all of them when all are.

        Whose address is not known has not answered since the tracker started.
        """
        now = [self._by_address.get((origin.host, origin.port), origin) for origin in origins]
        return [origin for origin in now if origin in self._up] or now

    async def _watch(self, host: str) -> None:
        while True:
            # One that was never asked has joined just now.
            if host in self._peers or host in self._silent:
                await asyncio.sleep(RETRY_INTERVAL if host in self._silent else INTERVAL)
            await self._ask(host)

    async def _ask(self, host: str) -> None:
        url = self._http.url(host, "/internal/peer")
        try:
            answer = await self._http.call("GET", url, deadline=Deadline.after(TIMEOUT))
            peer = answer.decode(PeerInfo)
        except CallFailed as error:
            if host in self._listed.hosts:
                self._failed(host, error.detail)
        else:
            if host in self._listed.hosts:
                self._answered(host, peer)

    def _failed(self, host: str, why: str) -> None:
        if host not in self._silent:
            log.warning("origin does not answer", origin=host, error=why)
        self._silent[host] = why
        self._count_up()

    def _answered(self, host: str, peer: PeerInfo) -> None:
        if self._silent.pop(host, None) is not None:
            log.info("origin answers again", origin=host)
        before = self._peers.get(host)
        if before is not None and before != peer:
            self._by_address.pop((before.host, before.port), None)
        self._peers[host] = peer
        self._by_address[peer.host, peer.port] = peer
        self._count_up()

    def _count_up(self) -> None:
        peers = self._peers.items()
        self._up = frozenset(peer for host, peer in peers if host not in self._silent)
