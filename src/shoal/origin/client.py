# SPDX-License-Identifier: Apache-2.0
"""The origins as one: how proxy, build-index, tracker, agent and origins reach them.

The client knows the ring. It asks every owner, then every other member (when the ring changes,
blobs stay where they are until they are repaired), before it says "not there"; and it never says
"not there" when it was "could not ask".
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from shoal.model.digest import Digest
from shoal.origin.members import ASK_TIMEOUT, Members, url_of
from shoal.origin.messages import MetainfoAnswer
from shoal.origin.placing import Placing, UploadResult
from shoal.origin.poll import Poll
from shoal.origin.presence import Census, Presence
from shoal.origin.quorum import QuorumFailed
from shoal.origin.remote_blob import RemoteBlob
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import OriginsConfig
from shoal.store.threads import in_thread
from shoal.swarm.metainfo import InvalidMetainfo, Metainfo
from shoal.swarm.peers import PeerInfo
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected, Unreachable, combined
from shoal.web.probe import silent
from shoal.web.retrying import RetriesExhausted, retrying

READINESS_TIMEOUT = 1.0

LINGER = 0.25
"""Seconds that the other hosts may still take once the answer is settled."""

HEDGE_AFTER = 0.5
"""Seconds of silence after which the next host is asked as well."""

ASK_AGAIN = RetryPolicy(initial=0.2, attempts=3)
"""For a question that a client waits for, when too many hosts could not be asked: one may be
starting while another had no time."""

__all__ = ["Located", "OriginCluster", "Presence", "QuorumFailed", "RemoteBlob", "UploadResult"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Located:
    """A blob's pieces, and the origins that have them all."""

    metainfo: Metainfo
    peers: list[PeerInfo]


class OriginCluster(Placing):
    """All origins of the ring. Owns no connection: the `HttpClient` is the process's."""

    def __init__(self, http: HttpClient, config: OriginsConfig) -> None:
        super().__init__(Members(http, config))
        self._rng = random.Random()

    @property
    def members(self) -> tuple[str, ...]:
        """All hosts of the ring."""
        return self._members.hosts

    def owners(self, digest: Digest) -> list[str]:
        """The hosts (``host:port``) that should have the blob, best first."""
        return self._members.owners(digest)

    # -- asking -------------------------------------------------------------------------------

    async def stat(self, digest: Digest, *, deadline: Deadline, keep: bool = False) -> int | None:
        """The size of the blob, or None: it is not there.

        `keep`: the caller relies on it from now on, so its grace time begins anew on every host
        that has it and answers in time, normally the write quorum.

        A blob that was acknowledged is on at least `write_quorum` hosts. So "not there" is certain
        as soon as fewer hosts than that are silent, and one dead origin does not stop a push from
        finding out that it must send a layer. Raises `Unreachable` when more could not be asked,
        in any of the attempts of `ASK_AGAIN`.
        """
        try:
            return await retrying(
                lambda left: self._stat(digest, left, keep),
                policy=ASK_AGAIN,
                deadline=deadline,
                rng=self._rng,
            )
        except RetriesExhausted as exhausted:
            raise exhausted.last from exhausted

    async def _stat(self, digest: Digest, deadline: Deadline, keep: bool) -> int | None:
        quorum = self._members.config.write_quorum
        wanted = max(0, len(self.members) - quorum)

        def enough(poll: Poll[int]) -> float | None:
            if poll.found:
                return LINGER if keep and len(poll.found) < quorum else 0.0
            return LINGER if len(poll.absent) > wanted else None

        async def ask(host: str) -> int:
            return await self._members.size_on(host, digest, deadline, keep=keep)

        poll = await self._members.poll(digest, ask, enough)
        if poll.found:
            return next(iter(poll.found.values()))
        if len(poll.absent) > wanted:
            return None
        raise _could_not_ask(digest, poll)

    async def readiness(self) -> list[str]:
        """Nothing if enough origins answer for a push to be taken; else which do not, and why."""
        quorum = self._members.config.write_quorum
        silent_hosts = await silent(
            self._members.http, self.members, "/health", enough=quorum, timeout=READINESS_TIMEOUT
        )
        if not silent_hosts:
            return []
        answering = len(self.members) - len(silent_hosts)
        return [
            f"{answering} origin(s) answer, the write quorum is {quorum}",
            *(f"origin {host}: {why}" for host, why in silent_hosts.items()),
        ]

    async def stat_many(
        self, digests: Iterable[Digest], *, deadline: Deadline, keep: bool = False
    ) -> Presence:
        """Where each of the blobs is. One request (or one per 1,000 blobs) to each host.

        Digests that no owner has are asked for at the other members. A digest that is not in
        `sizes` is certainly not there only when nobody is in `unasked`. `keep`: the caller relies
        on them from now on, so their grace time begins anew where `copies` says they are.
        """
        wanted = list(dict.fromkeys(digests))
        own = {digest: self.owners(digest) for digest in wanted}

        async def ask(host: str, batch: Sequence[Digest]) -> dict[Digest, int]:
            return await self._members.sizes_on(host, batch, deadline, keep=keep)

        census = Census(ask, quorum=self._members.config.write_quorum, linger=LINGER)
        await census.round(own)
        missing = [digest for digest in wanted if digest not in census.sizes]
        await census.round(
            {digest: [h for h in self.members if h not in own[digest]] for digest in missing}
        )
        return census.presence()

    async def metainfo(self, digest: Digest, *, deadline: Deadline) -> Located | None:
        """The blob's pieces and the origins that have it, or None: it is not there.

        Raises `Unreachable` when nobody has it and somebody could not be asked.
        """

        async def ask(host: str) -> MetainfoAnswer:
            path = f"/internal/blobs/{digest}/metainfo"
            answer = await self._members.call(host, "GET", path, deadline.at_most(ASK_TIMEOUT))
            located = answer.decode(MetainfoAnswer)
            _check(located.metainfo, digest, host)
            return located

        poll = await self._members.poll(
            digest,
            lambda host: self._members.noting(host, ask(host)),
            lambda poll: LINGER if poll.found else None,
        )
        if not poll.found:
            if poll.unasked:
                raise _could_not_ask(digest, poll)
            return None
        first, *others = poll.found.values()
        agreeing = [first, *(other for other in others if other.metainfo == first.metainfo)]
        return Located(first.metainfo, [answer.peer for answer in agreeing])

    # -- reading ------------------------------------------------------------------------------

    async def read(self, digest: Digest, *, deadline: Deadline, limit: int) -> bytes:
        """The whole of a small blob (a manifest), of at most `limit` bytes; its digest is verified.

        A body comes from one host alone. Raises `NotFound` when all members answered that it is not
        there, `Unreachable` when nobody gave it and somebody could not be asked.
        """

        async def ask(host: str) -> bytes:
            body = bytearray()
            url = url_of(host, f"/internal/blobs/{digest}")
            async with self._members.http.stream(
                "GET", url, deadline=deadline, expect=(200,)
            ) as answer:
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > limit:
                        raise Rejected("GET", url, f"{digest} has more than {limit} bytes")
            found = await in_thread(Digest.of, body, digest.algorithm)
            if found != digest:
                raise Rejected("GET", url, f"sent {len(body)} bytes with digest {found}")
            return bytes(body)

        poll = await self._members.poll(
            digest,
            lambda host: self._members.noting(host, ask(host)),
            lambda poll: 0.0 if poll.found else None,
            stagger=HEDGE_AFTER,
        )
        if poll.found:
            return next(iter(poll.found.values()))
        raise _not_had(digest, poll)

    async def open(
        self, digest: Digest, *, deadline: Deadline, besides: str | None = None
    ) -> RemoteBlob:
        """The blob as a stream, wherever it is; bytes flow when its segments are read.

        `besides` is a member that is known not to have it: an origin that asks the others.
        Raises `NotFound` when all members answered that it is not there, `Unreachable` when nobody
        has it and somebody could not be asked.
        """

        async def ask(host: str) -> int:
            return await self._members.size_on(host, digest, deadline)

        poll = await self._members.poll(
            digest, ask, lambda poll: 0.0 if poll.found else None, besides=besides
        )
        if not poll.found:
            raise _not_had(digest, poll)
        holder, size = next(iter(poll.found.items()))
        others = [host for host in self._members.in_turn(digest) if host != holder]
        return RemoteBlob(self._members.http, self._members.health, digest, size, [holder, *others])


def _check(metainfo: Metainfo, digest: Digest, host: str) -> None:
    try:
        metainfo.check()
        if metainfo.digest != str(digest):
            raise InvalidMetainfo(f"it is that of {metainfo.digest}")
    except InvalidMetainfo as error:
        url = url_of(host, f"/internal/blobs/{digest}/metainfo")
        raise Unreachable("GET", url, f"the metainfo is not that of {digest}: {error}") from error


def _not_had(digest: Digest, poll: Poll[T]) -> CallFailed:
    if poll.unasked:
        return _could_not_ask(digest, poll)
    detail = (
        f"{digest} is on none of the {len(poll.absent)} origins asked: {', '.join(poll.absent)}"
    )
    return NotFound("GET", f"/internal/blobs/{digest}", detail)


def _could_not_ask(digest: Digest, poll: Poll[T]) -> CallFailed:
    """`Unreachable`, or `Rejected` when each host refused and would refuse again."""
    path = f"/internal/blobs/{digest}"
    detail = f"no origin gave {digest}, and not all could be asked: {poll.said()}"
    absent = [NotFound("GET", url_of(host, path), "not there") for host in poll.absent]
    failure = combined("GET", path, detail, [*poll.unasked.values(), *absent])
    failure.__cause__ = next(iter(poll.unasked.values()))
    return failure
