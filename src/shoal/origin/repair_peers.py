# SPDX-License-Identifier: Apache-2.0
"""How repair asks and serves the other members of the ring."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated

import msgspec
import structlog

from shoal.model.digest import Digest
from shoal.origin.bandwidth import Bandwidth
from shoal.origin.client import OriginCluster
from shoal.origin.local import LocalBlobs
from shoal.origin.members import STAT, Members
from shoal.origin.messages import MAX_STAT_DIGESTS, StatAnswer, StatRequest
from shoal.origin.retention import Copy
from shoal.origin.service import BackendTerms
from shoal.store.full import is_unreadable
from shoal.store.threads import in_thread, open_file
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Unreachable

ASK_TIMEOUT = 30.0
"""Seconds for the answer about a batch: a disk that is asked for 1,000 files may need them."""

SEND_TIMEOUT = 30.0
"""Seconds for a copy to be taken in, besides those that its bytes take."""

SLOWEST = 4 * 1024 * 1024
"""Bytes per second below which a transfer without a limit is given up."""

REPAIR = "/internal/repair"
HOLDING = "/internal/repair/hold"

log = structlog.get_logger()


class HoldRequest(msgspec.Struct, frozen=True):
    """The caller gives up its own copies of these: keep yours (for `HOLD` seconds at least)."""

    digests: Annotated[list[str], msgspec.Meta(max_length=MAX_STAT_DIGESTS)]

    kept: bool = False
    """Garbage collection leaves those that are here alone for good."""

    unbacked: bool = False
    """Somebody relies on the origins alone: those that are here are not evicted."""


class RepairPeers:
    """The other members, as repair needs them."""

    def __init__(
        self,
        name: str,
        cluster: OriginCluster,
        members: Members,
        local: LocalBlobs,
        bandwidth: Bandwidth,
        *,
        concurrency: int,
        terms: Callable[[Digest], Awaitable[BackendTerms]],
    ) -> None:
        """`name` is this host's; `concurrency`: copies that may be sent at the same time.

        `terms`: what those that get a copy are told of its backends.
        """
        self._terms = terms
        self._name = name
        self._cluster = cluster
        self._members = members
        self._local = local
        self._bandwidth = bandwidth
        self._concurrency = concurrency

    @property
    def replicas(self) -> int:
        """Copies that each blob should have."""
        return self._members.config.replicas

    @property
    def hosts(self) -> Sequence[str]:
        """All members."""
        return self._members.hosts

    def rings(self, digests: Iterable[Digest]) -> dict[Digest, list[str]]:
        """For each digest all members, in the order in which they should have it. Blocks."""
        return {digest: self._members.ring(digest) for digest in digests}

    async def sizes(self, host: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        """Sizes of those that are whole on one member; raises `CallFailed`.

        A request of its own: nobody who waits for an answer about one blob waits behind it.
        """
        return await self._ask(host, STAT, StatRequest([*map(str, digests)]), digests)

    async def hold(
        self, host: str, digests: Sequence[Digest], *, kept: bool, unbacked: bool
    ) -> dict[Digest, int]:
        """Sizes of those that are whole on one member and stay there; raises `CallFailed`.

        `kept` and `unbacked` as in `HoldRequest`.
        """
        body = HoldRequest([*map(str, digests)], kept, unbacked)
        return await self._ask(host, HOLDING, body, digests)

    async def _ask(
        self, host: str, path: str, body: object, digests: Sequence[Digest]
    ) -> dict[Digest, int]:
        answer = await self._members.call(host, "POST", path, Deadline.after(ASK_TIMEOUT), body)
        present: Mapping[str, int] = answer.decode(StatAnswer).present
        return {digest: present[str(digest)] for digest in digests if str(digest) in present}

    async def send(self, host: str, copy: Copy) -> bool:
        """Give one member its copy, as old as this one; False when this one has gone meanwhile.

        Raises `CallFailed`, and `OSError` when this host's disk does not give the copy.
        """
        digest = copy.digest
        with self._local.in_use(digest):
            whole = await in_thread(self._local.find, digest)
            if whole is None:
                return False
            try:
                file = await open_file(whole.blob.path)
            except FileNotFoundError:
                return False
            size = whole.metainfo.size
            slowest = self._bandwidth.slowest(self._concurrency, SLOWEST)
            try:
                terms = await self._terms(digest)
                await self._cluster.send(
                    host,
                    digest,
                    file,
                    size,
                    deadline=Deadline.after(SEND_TIMEOUT).with_transfer(size, slowest),
                    kept=await in_thread(self._local.is_kept, digest),
                    used=copy.last_used,
                    pace=self._bandwidth.take,
                    namespaces=terms.pending,
                    backed=terms.backed,
                    unbacked=terms.unbacked,
                )
            except Unreachable as error:
                if isinstance(error.__cause__, OSError) and is_unreadable(error.__cause__):
                    raise error.__cause__ from None
                raise
            finally:
                await in_thread(os.close, file)
        return True

    async def call_for_repair(self) -> None:
        """Tell the others that this host may lack blobs; who cannot be told looks by himself."""

        async def tell(host: str) -> None:
            body = RepairRequest(lacking=self._name)
            with suppress(CallFailed):
                await self._members.noting(
                    host,
                    self._members.http.call(
                        "POST",
                        self._members.http.url(host, REPAIR),
                        deadline=Deadline.after(ASK_TIMEOUT),
                        json=body,
                        expect=(202,),
                    ),
                )

        await asyncio.gather(*(tell(host) for host in self.hosts if host != self._name))


class RepairRequest(msgspec.Struct, frozen=True):
    """Look now for copies that are missing."""

    lacking: str | None = None
    """Only on this member, which has just started or lost its disk."""
