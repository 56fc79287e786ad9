# SPDX-License-Identifier: Apache-2.0
"""The members of the origins' ring, one at a time: whom to ask first, and asking one of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from shoal.model.digest import Digest
from shoal.origin.messages import MAX_STAT_DIGESTS, StatAnswer, StatRequest
from shoal.origin.poll import Poll
from shoal.ring.config import OriginsConfig
from shoal.ring.health import Health
from shoal.ring.rendezvous import owners
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Unreachable

ASK_TIMEOUT = 5.0
"""Seconds for the answer to a small question."""

T = TypeVar("T")


class Members:
    """All hosts (``host:port``) of the ring, and which of them answered lately."""

    def __init__(self, http: HttpClient, config: OriginsConfig) -> None:
        self.http = http
        self.config = config
        self.health = Health()

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

        `besides` is a member that is known not to have the blob.
        """
        poll: Poll[T] = Poll()
        if besides in self.hosts:
            poll.absent.append(besides)
        members = self.in_turn(digest)
        replicas = self.config.replicas
        for group in (members[:replicas], members[replicas:]):
            hosts = [host for host in group if host != besides]
            if hosts and enough(poll) is None:
                await poll.ask(
                    hosts,
                    lambda host: self.noting(host, question(host)),
                    enough=enough,
                    stagger=stagger,
                )
        return poll

    async def size_on(
        self, host: str, digest: Digest, deadline: Deadline, *, keep: bool = False
    ) -> int:
        """The blob's size on one host; raises `NotFound` when it is not there."""
        present = await self.sizes_on(host, [digest], deadline, keep=keep)
        size = present.get(str(digest))
        if size is None:
            raise NotFound("POST", url_of(host, "/internal/blobs/stat"), f"no {digest}")
        return size

    async def sizes_on(
        self,
        host: str,
        digests: Sequence[Digest],
        deadline: Deadline,
        *,
        keep: bool = False,
        kept: bool = False,
    ) -> dict[str, int]:
        """Sizes of those blobs that are on one host; `keep` and `kept` as in `StatRequest`."""
        present: dict[str, int] = {}
        for start in range(0, len(digests), MAX_STAT_DIGESTS):
            batch = digests[start : start + MAX_STAT_DIGESTS]
            body = StatRequest([str(digest) for digest in batch], keep, kept)
            soon = deadline.at_most(ASK_TIMEOUT)
            answer = await self.call(host, "POST", "/internal/blobs/stat", soon, body)
            present |= answer.decode(StatAnswer).present
        return present

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
