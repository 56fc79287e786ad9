# SPDX-License-Identifier: Apache-2.0
"""The members of the origins' ring, one at a time: whom to ask first, and asking one of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from shoal.model.digest import Digest
from shoal.origin.messages import MAX_STAT_DIGESTS, StatAnswer, StatRequest
from shoal.origin.poll import Poll
from shoal.ring.config import OriginsConfig
from shoal.ring.health import Health
from shoal.ring.rendezvous import owners
from shoal.web.batching import Batches
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Unreachable

ASK_TIMEOUT = 5.0
"""Seconds for the answer to a small question."""

STAT = "/internal/blobs/stat"

T = TypeVar("T")


class Members:
    """All hosts (``host:port``) of the ring, and which of them answered lately."""

    def __init__(self, http: HttpClient, config: OriginsConfig) -> None:
        self.http = http
        self.config = config
        self.health = Health()
        self._stats = {
            (host, keep): Batches[Digest, int | None](
                partial(self._sizes_at, host, keep),
                url_of(host, STAT),
                most=MAX_STAT_DIGESTS,
                timeout=ASK_TIMEOUT,
            )
            for host in self.hosts
            for keep in (False, True)
        }

    @property
    def hosts(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.config.hosts)

    def owners(self, digest: Digest) -> list[str]:
        """The hosts that should have the blob, best first."""
        return owners(digest, self.config.hosts, self.config.replicas)

    def ring(self, digest: Digest) -> list[str]:
        """All hosts in the order in which they should have the blob."""
        return owners(digest, self.config.hosts)

    def in_turn(self, digest: Digest) -> list[str]:
        """All hosts in the order in which to ask for a blob: owners first, of them the healthy."""
        own = self.owners(digest)
        others = [host for host in self.ring(digest) if host not in own]
        return self.healthy_first(own) + self.healthy_first(others)

    def healthy_first(self, hosts: Iterable[str]) -> list[str]:
        """The hosts, those that failed lately at the end."""
        return self.health.order(list(hosts), time.monotonic())

    async def poll(
        self,
        digest: Digest,
        question: Callable[[str], Awaitable[T]],
        enough: Callable[[Poll[T]], float | None],
        *,
        stagger: float = 0.0,
        besides: str | None = None,
    ) -> Poll[T]:
        """Ask the owners, and when that was not enough (`Poll.ask`), the other members.

        `besides` is a member that is known not to have the blob. A host that was overtaken is noted
        as failed; the rest of what calls come to is noted by `question`, which makes them.
        """
        poll: Poll[T] = Poll()
        if besides in self.hosts:
            poll.absent.append(besides)
        members = self.in_turn(digest)
        replicas = self.config.replicas
        for group in (members[:replicas], members[replicas:]):
            hosts = [host for host in group if host != besides]
            if hosts and enough(poll) is None:
                await poll.ask(hosts, question, enough=enough, stagger=stagger)
        for host in poll.overtaken:
            self.health.failed(host, time.monotonic())
        return poll

    async def size_on(
        self, host: str, digest: Digest, deadline: Deadline, *, keep: bool = False
    ) -> int:
        """The blob's size on one member; raises `NotFound` when it is not there."""
        soon = deadline.at_most(ASK_TIMEOUT)
        size = await self._stats[host, keep].ask(digest, soon)
        if size is None:
            raise NotFound("POST", url_of(host, STAT), f"no {digest}")
        return size

    async def sizes_on(
        self, host: str, digests: Sequence[Digest], deadline: Deadline, *, keep: bool = False
    ) -> dict[Digest, int]:
        """Sizes of those blobs that are on one member; `keep` as in `StatRequest`."""
        present: dict[Digest, int] = {}
        for start in range(0, len(digests), MAX_STAT_DIGESTS):
            part = digests[start : start + MAX_STAT_DIGESTS]
            soon = deadline.at_most(ASK_TIMEOUT)
            sizes = await self._stats[host, keep].ask_all(part, soon)
            present |= {d: size for d, size in zip(part, sizes, strict=True) if size is not None}
        return present

    async def _sizes_at(
        self, host: str, keep: bool, digests: Sequence[Digest], deadline: Deadline
    ) -> list[int | None]:
        present = await self.stat(host, StatRequest([*map(str, digests)], keep), deadline)
        return [present.get(str(digest)) for digest in digests]

    async def stat(self, host: str, request: StatRequest, deadline: Deadline) -> dict[str, int]:
        """Ask any host in a request of its own; sizes by the digests' text."""
        answer = await self.call(host, "POST", STAT, deadline.at_most(ASK_TIMEOUT), request)
        return answer.decode(StatAnswer).present

    async def call(
        self, host: str, method: str, path: str, deadline: Deadline, body: object = None
    ) -> Answer:
        """Ask one host; raises `CallFailed`."""
        call = self.http.call(method, url_of(host, path), deadline=deadline, json=body)
        return await self.noting(host, call)

    async def noting(self, host: str, call: Awaitable[T]) -> T:
        """Await the call; note for the order of hosts whether this one could answer."""
        try:
            answer = await call
        except (Unreachable, Overloaded):
            self.health.failed(host, time.monotonic())
            raise
        except CallFailed:
            self.health.ok(host, time.monotonic())
            raise
        self.health.ok(host, time.monotonic())
        return answer


def url_of(host: str, path: str) -> str:
    """The URL of a path on one host."""
    return f"http://{host}{path}"
