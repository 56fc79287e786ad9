# SPDX-License-Identifier: Apache-2.0
"""Where blobs are: asking many hosts for many digests, in one request to each host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from shoal.model.digest import Digest
from shoal.origin.poll import Poll
from shoal.web.failures import CallFailed, Unreachable

AskBatch = Callable[[str, Sequence[Digest]], Awaitable[Mapping[Digest, int]]]
"""Asks one host for digests: the sizes of those that are there."""


@dataclass(frozen=True, slots=True)
class Presence:
    """Which blobs are there, on which hosts, and who could not be asked."""

    sizes: Mapping[Digest, int]
    copies: Mapping[Digest, frozenset[str]]
    unasked: Mapping[str, CallFailed]


class Census:
    """Collects a `Presence` in one or more rounds."""

    def __init__(self, ask: AskBatch, *, quorum: int, linger: float) -> None:
        """Once every digest has `quorum` copies, the others have `linger` seconds to answer."""
        self._ask = ask
        self._quorum = quorum
        self._linger = linger
        self.sizes: dict[Digest, int] = {}
        self._copies: dict[Digest, set[str]] = {}
        self.unasked: dict[str, CallFailed] = {}

    async def round(self, hosts_of: Mapping[Digest, Sequence[str]]) -> None:
        """Ask each host for its digests."""
        batches: dict[str, list[Digest]] = {}
        for digest, hosts in hosts_of.items():
            for host in hosts:
                batches.setdefault(host, []).append(digest)

        async def ask(host: str) -> None:
            self._note(host, batches[host], await self._ask(host, batches[host]))

        def enough(_: Poll[None]) -> float | None:
            safe = all(self.copies(digest) >= self._quorum for digest in hosts_of)
            return self._linger if safe else None

        poll: Poll[None] = Poll()
        await poll.ask(list(batches), ask, enough=enough)
        self.unasked.update(poll.unasked)
        for host in sorted(batches.keys() - poll.found.keys() - poll.unasked.keys()):
            self.unasked[host] = Unreachable("POST", host, "silent when the others had answered")

    def _note(self, host: str, asked: Sequence[Digest], present: Mapping[Digest, int]) -> None:
        for digest in asked:
            size = present.get(digest)
            if size is not None:
                self.sizes.setdefault(digest, size)
                self._copies.setdefault(digest, set()).add(host)

    def copies(self, digest: Digest) -> int:
        """How many hosts have it, as far as is known."""
        return len(self._copies.get(digest, ()))

    def presence(self) -> Presence:
        """What is known after the rounds so far."""
        copies = {digest: frozenset(hosts) for digest, hosts in self._copies.items()}
        return Presence(self.sizes, copies, self.unasked)
