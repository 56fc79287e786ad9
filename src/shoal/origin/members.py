# SPDX-License-Identifier: Apache-2.0
"""The members of the origins' ring, one at a time: whom to ask first, and asking one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from shoal.model.digest import Digest
from shoal.origin.health import MembersHealth
from shoal.origin.messages import (
    MAX_STAT_DIGESTS,
    OwedAnswer,
    OwedRequest,
    Owing,
    StatAnswer,
    StatRequest,
)
from shoal.origin.poll import Poll
from shoal.ring.config import OriginsConfig
from shoal.ring.rendezvous import owners
from shoal.web.batching import Batches
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Unreachable
from shoal.web.hosts import HostList

ASK_TIMEOUT = 5.0
"""Seconds for the answer to a small question."""

STAT = "/internal/blobs/stat"
OWED = "/internal/writeback/owed"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """What has become different about the members of the ring."""

    joined: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()

    back: frozenset[str] = frozenset()
    """Healthy again: they may lack what was written meanwhile."""

    lost: frozenset[str] = frozenset()
    """Unhealthy from now on: others take what is written meanwhile."""


class Members:
    """All hosts (``host:port``) of the ring, and which of them answered lately.

    The list may change, and hosts may become unhealthy, at any time between two awaits.
    """

    def __init__(self, http: HttpClient, config: OriginsConfig) -> None:
        self.http = http
        self.config = config
        self.listed = HostList(config, "origins")
        self.listed.watch(self._moved)
        self.health = MembersHealth(http, config.health, self._turned)
        self._stats: dict[tuple[str, bool], Batches[Digest, int | None]] = {}
        self._owed: dict[str, Batches[tuple[str, str], Owing | None]] = {}
        self._watchers: list[Callable[[Change], None]] = []

    async def start(self, *, check: bool = True) -> None:
        """Look up and follow the list, and unless `check` is False check the members' health."""
        await self.listed.start()
        if check:
            self.health.start(self.hosts)

    async def close(self) -> None:
        """End what `start` began."""
        await self.health.close()
        await self.listed.close()

    def watch(self, watcher: Callable[[Change], None]) -> None:
        """Tell the watcher of every change from now on, in the event loop."""
        self._watchers.append(watcher)

    def _moved(self, before: Sequence[str], now: Sequence[str]) -> None:
        joined, left = frozenset(now) - frozenset(before), frozenset(before) - frozenset(now)
        for host in left:
            for keep in (False, True):
                self._stats.pop((host, keep), None)
            self._owed.pop(host, None)
        self.health.follow(now)
        self._tell(Change(joined=joined, left=left))

    def _turned(self, host: str, healthy: bool) -> None:
        turned = frozenset({host})
        self._tell(Change(back=turned) if healthy else Change(lost=turned))

    def _tell(self, change: Change) -> None:
        for watcher in self._watchers:
            watcher(change)

    # -- who they are -------------------------------------------------------------------------

    @property
    def hosts(self) -> tuple[str, ...]:
        """All of them."""
        return self.listed.hosts

    def owners(self, digest: Digest) -> list[str]:
        """The hosts that should have the blob, best first."""
        return self.ring(digest)[: self.config.replicas]

    def ring(self, digest: Digest) -> list[str]:
        """All hosts in the order in which they should have the blob."""
        return owners(digest, self.hosts, weights=self.config.weights)

    def healthy(self, host: str) -> bool:
        """Whether the host passes its checks; a host that is not checked does."""
        return self.health.healthy(host)

    def in_turn(self, digest: Digest) -> list[str]:
        """All hosts in the order in which to ask for a blob: owners first, of them the healthy.

        Those that fail their checks come last of all.
        """
        ring = self.ring(digest)
        replicas = self.config.replicas
        in_turn = self.healthy_first(ring[:replicas]) + self.healthy_first(ring[replicas:])
        return sorted(in_turn, key=lambda host: not self.healthy(host))

    def healthy_first(self, hosts: Iterable[str]) -> list[str]:
        """The hosts, those that failed lately at the end."""
        return self.health.order(list(hosts))

    def rounds(self, digest: Digest) -> list[list[str]]:
        """Whom to ask at once, group after group, until one of them has the blob.

        The owners, or who took the copies in the place of unhealthy ones; then the other healthy
        hosts, to which a blob may have come before the ring changed; then the unhealthy ones.
        """
        in_turn = self.in_turn(digest)
        well = [host for host in in_turn if self.healthy(host)]
        replicas = self.config.replicas
        return [well[:replicas], well[replicas:], in_turn[len(well) :]]

    def unknown(self) -> dict[str, CallFailed]:
        """Why "not there" would be said too early: members that must exist are not known.

        Nothing as long as the list is long enough for a push. A written list is what it is; one
        from the DNS may lack hosts for a while.
        """
        count, quorum = len(self.hosts), self.config.write_quorum
        if count >= (quorum if self.listed.moves else 1):
            return {}
        source = self.listed.source
        detail = f"names {count} member(s), fewer than the write quorum of {quorum}"
        if not count:
            detail = self.listed.why_empty()
        return {source: Unreachable("GET", source, detail)}

    # -- asking -------------------------------------------------------------------------------

    async def poll(
        self,
        digest: Digest,
        question: Callable[[str], Awaitable[T]],
        enough: Callable[[Poll[T]], float | None],
        *,
        stagger: float = 0.0,
        besides: str | None = None,
    ) -> Poll[T]:
        """Ask the members in their `rounds`, until that is enough (`Poll.ask`).

        `besides` is a member that is known not to have the blob. A host that was overtaken is noted
        as failed; the rest of what calls come to is noted by `question`, which makes them.
        """
        poll: Poll[T] = Poll()
        if besides in self.hosts:
            poll.absent.append(besides)
        for group in self.rounds(digest):
            hosts = [host for host in group if host != besides]
            if hosts and enough(poll) is None:
                await poll.ask(hosts, question, enough=enough, stagger=stagger)
        for host in poll.overtaken:
            self.health.failed(host)
        poll.unasked |= self.unknown()
        return poll

    def _batches(self, host: str, keep: bool) -> Batches[Digest, int | None]:
        batches = self._stats.get((host, keep))
        if batches is None:
            batches = Batches(
                partial(self._sizes_at, host, keep),
                self.http.url(host, STAT),
                most=MAX_STAT_DIGESTS,
                timeout=ASK_TIMEOUT,
            )
            # A caller may still ask a host that has just left.
            if host in self.hosts:
                self._stats[host, keep] = batches
        return batches

    async def size_on(
        self, host: str, digest: Digest, deadline: Deadline, *, keep: bool = False
    ) -> int:
        """The blob's size on one member; raises `NotFound` when it is not there."""
        soon = deadline.at_most(ASK_TIMEOUT)
        size = await self._batches(host, keep).ask(digest, soon)
        if size is None:
            raise NotFound("POST", self.http.url(host, STAT), f"no {digest}")
        return size

    async def sizes_on(
        self, host: str, digests: Sequence[Digest], deadline: Deadline, *, keep: bool = False
    ) -> dict[Digest, int]:
        """Sizes of those blobs that are on one member; `keep` as in `StatRequest`."""
        present: dict[Digest, int] = {}
        for start in range(0, len(digests), MAX_STAT_DIGESTS):
            part = digests[start : start + MAX_STAT_DIGESTS]
            soon = deadline.at_most(ASK_TIMEOUT)
            sizes = await self._batches(host, keep).ask_all(part, soon)
            present |= {d: size for d, size in zip(part, sizes, strict=True) if size is not None}
        return present

    async def _sizes_at(
        self, host: str, keep: bool, digests: Sequence[Digest], deadline: Deadline
    ) -> list[int | None]:
        present = await self.stat(host, StatRequest([*map(str, digests)], keep), deadline)
        return [present.get(str(digest)) for digest in digests]

    async def owing_at(
        self, host: str, repository: str, digest: Digest, deadline: Deadline
    ) -> Owing | None:
        """Whether a member is still to write a blob to the repository's backend."""
        batches = self._owed.get(host)
        if batches is None:
            batches = Batches(
                partial(self._all_owing_at, host),
                self.http.url(host, OWED),
                most=MAX_STAT_DIGESTS,
                timeout=ASK_TIMEOUT,
            )
            if host in self.hosts:
                self._owed[host] = batches
        return await batches.ask((repository, str(digest)), deadline.at_most(ASK_TIMEOUT))

    async def _all_owing_at(
        self, host: str, asked: Sequence[tuple[str, str]], deadline: Deadline
    ) -> list[Owing | None]:
        answer = await self.call(host, "POST", OWED, deadline, OwedRequest([*asked]))
        return answer.decode(OwedAnswer).owing

    async def stat(self, host: str, request: StatRequest, deadline: Deadline) -> dict[str, int]:
        """Ask any host in a request of its own; sizes by the digests' text."""
        answer = await self.call(host, "POST", STAT, deadline.at_most(ASK_TIMEOUT), request)
        return answer.decode(StatAnswer).present

    async def call(
        self, host: str, method: str, path: str, deadline: Deadline, body: object = None
    ) -> Answer:
        """Ask one host; raises `CallFailed`."""
        call = self.http.call(method, self.http.url(host, path), deadline=deadline, json=body)
        return await self.noting(host, call)

    async def noting(self, host: str, call: Awaitable[T]) -> T:
        """Await the call; note for the order of hosts whether this one could answer."""
        try:
            answer = await call
        except (Unreachable, Overloaded):
            self.health.failed(host)
            raise
        except CallFailed:
            self.health.ok(host)
            raise
        self.health.ok(host)
        return answer
