# SPDX-License-Identifier: Apache-2.0
"""The origins as one: how proxy, build-index, tracker, agent and origins reach them.

The client knows the ring. It asks every owner, then every other member (when the ring changes,
blobs stay where they are until they are repaired), before it says "not there"; and it never says
"not there" when it was "could not ask".
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from shoal.model.digest import Digest
from shoal.origin.messages import (
    MAX_STAT_DIGESTS,
    MetainfoAnswer,
    ReplicateAnswer,
    ReplicateRequest,
    StatAnswer,
    StatRequest,
)
from shoal.origin.poll import Poll
from shoal.origin.presence import Census, Presence
from shoal.origin.quorum import Attempt, Placement, QuorumFailed
from shoal.origin.remote_blob import RemoteBlob
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import OriginsConfig
from shoal.ring.health import Health
from shoal.ring.rendezvous import owners
from shoal.store.threads import in_thread
from shoal.swarm.metainfo import InvalidMetainfo, Metainfo
from shoal.swarm.peers import PeerInfo
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import (
    CallFailed,
    NotFound,
    Overloaded,
    Rejected,
    Unreachable,
    combined,
)
from shoal.web.probe import silent
from shoal.web.retrying import RetriesExhausted, retrying

ASK_TIMEOUT = 5.0
"""Seconds for the answer to a small question."""

READINESS_TIMEOUT = 1.0

LINGER = 0.25
"""Seconds that the other hosts may still take once the answer is settled."""

HEDGE_AFTER = 0.5
"""Seconds of silence after which the next host is asked as well."""

ASK_AGAIN = RetryPolicy(initial=0.2, attempts=3)
"""For a question that a client waits for, when too many hosts could not be asked: one may be
starting while another had no time."""

PROBE_FROM = 1024 * 1024
"""Bytes from which an upload first asks whether the host has the blob already."""

__all__ = ["Located", "OriginCluster", "Presence", "QuorumFailed", "RemoteBlob", "UploadResult"]

T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class UploadResult:
    """How many copies were safe when the upload returned, and where."""

    copies: int
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """A blob's pieces, and the origins that have them all."""

    metainfo: Metainfo
    peers: list[PeerInfo]


class OriginCluster:
    """All origins of the ring. Owns no connection: the `HttpClient` is the process's."""

    def __init__(self, http: HttpClient, config: OriginsConfig) -> None:
        self._http = http
        self._config = config
        self._health = Health()
        self._rng = random.Random()
        self._stragglers: set[asyncio.Task[None]] = set()

    @property
    def members(self) -> tuple[str, ...]:
        """All hosts of the ring."""
        return tuple(self._config.hosts)

    def owners(self, digest: Digest) -> list[str]:
        """The hosts (``host:port``) that should have the blob, best first."""
        return owners(digest, self._config.hosts, self._config.replicas)

    # -- writing ------------------------------------------------------------------------------

    async def upload(
        self, digest: Digest, source: Path | int, size: int, *, deadline: Deadline
    ) -> UploadResult:
        """Send a file (path or descriptor) to the owners; return when the write quorum is safe.

        The deadline must leave time for the transfer. The path may be unlinked, and the descriptor
        closed, once this returns: the copies still being made hold the file open. Raises
        `QuorumFailed`.
        """
        file = await in_thread(_hold, source)

        async def send(host: str) -> None:
            await self.send(host, digest, file, size, deadline=deadline)

        try:
            return await self.place(
                digest, send, deadline=deadline, finished=lambda: os.close(file)
            )
        except QuorumFailed as failure:
            log.warning("write quorum failed", digest=str(digest), size=size, error=failure.detail)
            raise

    async def place(
        self,
        digest: Digest,
        attempt: Attempt,
        *,
        deadline: Deadline,
        finished: Callable[[], None] = lambda: None,
    ) -> UploadResult:
        """Make a copy on each owner by `attempt`; return at the write quorum.

        `finished` is called once no attempt is or will be running. Raises `QuorumFailed`.
        """
        placement = Placement(digest, owners(digest, self._config.hosts), attempt, self._config)
        try:
            rest = await placement.until_quorum(deadline)
        except BaseException:
            finished()
            raise
        result = UploadResult(len(placement.made), tuple(placement.made))
        self._stragglers.add(rest)
        rest.add_done_callback(lambda task: self._placed(task, digest, placement, finished))
        return result

    def _placed(
        self,
        task: asyncio.Task[None],
        digest: Digest,
        placement: Placement,
        finished: Callable[[], None],
    ) -> None:
        self._stragglers.discard(task)
        finished()
        copies = len(placement.made)
        if copies < min(self._config.replicas, len(self._config.hosts)):
            error = None if task.cancelled() else task.exception()
            log.warning(
                "under-replicated",
                digest=str(digest),
                copies=copies,
                wanted=self._config.replicas,
                failures=[str(failure) for failure in placement.failures],
                error=None if error is None else repr(error),
            )

    async def send(
        self, host: str, digest: Digest, source: Path | int, size: int, *, deadline: Deadline
    ) -> None:
        """Make sure that this one host has the blob, verified and on stable storage.

        Raises `CallFailed`.
        """
        if size >= PROBE_FROM and await self._has(host, digest, size, deadline):
            return
        url = _url(host, f"/internal/blobs/{digest}")
        await self._noting(host, self._http.upload(url, source, size, deadline=deadline))

    async def _has(self, host: str, digest: Digest, size: int, deadline: Deadline) -> bool:
        present = await self._stat_on(host, [digest], deadline)
        return present.get(str(digest)) == size

    async def drain(self, timeout: float) -> None:
        """Wait for the copies still being made; end those that take longer."""
        if not self._stragglers:
            return
        _, late = await asyncio.wait(self._stragglers, timeout=timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int:
        """Have holders copy the blob to the owners that lack it; the number of copies after that.

        When that leaves it below the write quorum, as owners are down, other members take it.
        Raises `CallFailed` when no holder could be asked to copy it.
        """
        copies = set(holders)
        if not copies:
            return 0
        ring = owners(digest, self.members)
        own, others = ring[: self._config.replicas], ring[self._config.replicas :]
        lacking = [host for host in own if host not in copies]
        if lacking:
            copies |= await self._replicate(digest, holders, lacking, deadline)
        spare = [host for host in others if host not in copies]
        missing = self._config.write_quorum - len(copies)
        if spare and missing > 0:
            copies |= await self._replicate(digest, holders, spare[:missing], deadline)
        return len(copies)

    async def _replicate(
        self, digest: Digest, holders: Collection[str], to: list[str], deadline: Deadline
    ) -> set[str]:
        """Have the first holder that can be asked copy the blob; the hosts that it is on now."""
        body = ReplicateRequest(to)
        path = f"/internal/blobs/{digest}/replicate"
        failures: list[CallFailed] = []
        for holder in self._health.order(sorted(holders), time.monotonic()):
            try:
                answer = await self._call(holder, "POST", path, deadline, body)
            except CallFailed as error:
                failures.append(error)
                continue
            replicated = answer.decode(ReplicateAnswer)
            if replicated.failed:
                log.warning("replication failed", digest=str(digest), failed=replicated.failed)
            return set(replicated.copied)
        raise failures[-1]

    # -- asking -------------------------------------------------------------------------------

    async def stat(self, digest: Digest, *, deadline: Deadline) -> int | None:
        """The size of the blob, or None: it is not there.

        A blob that was acknowledged is on at least `write_quorum` hosts. So "not there" is certain
        as soon as fewer hosts than that are silent, and one dead origin does not stop a push from
        finding out that it must send a layer. Raises `Unreachable` when more could not be asked,
        in any of the attempts of `ASK_AGAIN`.
        """
        try:
            return await retrying(
                lambda left: self._stat(digest, left),
                policy=ASK_AGAIN,
                deadline=deadline,
                rng=self._rng,
            )
        except RetriesExhausted as exhausted:
            raise exhausted.last from exhausted

    async def _stat(self, digest: Digest, deadline: Deadline) -> int | None:
        wanted = max(0, len(self._config.hosts) - self._config.write_quorum)

        def enough(poll: Poll[int]) -> float | None:
            if poll.found:
                return 0.0
            return LINGER if len(poll.absent) > wanted else None

        async def ask(host: str) -> int:
            return await self._size_on(host, digest, deadline)

        poll = await self._ask_members(digest, ask, enough)
        if poll.found:
            return next(iter(poll.found.values()))
        if len(poll.absent) > wanted:
            return None
        raise _could_not_ask(digest, poll)

    async def readiness(self) -> list[str]:
        """Nothing if enough origins answer for a push to be taken; else which do not, and why."""
        quorum = self._config.write_quorum
        silent_hosts = await silent(
            self._http, self.members, "/health", enough=quorum, timeout=READINESS_TIMEOUT
        )
        if not silent_hosts:
            return []
        answering = len(self.members) - len(silent_hosts)
        return [
            f"{answering} origin(s) answer, the write quorum is {quorum}",
            *(f"origin {host}: {why}" for host, why in silent_hosts.items()),
        ]

    async def stat_many(self, digests: Iterable[Digest], *, deadline: Deadline) -> Presence:
        """Where each of the blobs is. One request (or one per 1,000 blobs) to each host.

        Digests that no owner has are asked for at the other members. A digest that is not in
        `sizes` is certainly not there only when nobody is in `unasked`.
        """
        wanted = list(dict.fromkeys(digests))
        own = {digest: self.owners(digest) for digest in wanted}

        async def ask(host: str, batch: Sequence[Digest]) -> dict[str, int]:
            return await self._stat_on(host, batch, deadline)

        census = Census(ask, quorum=self._config.write_quorum, linger=LINGER)
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
            answer = await self._call(host, "GET", path, deadline.at_most(ASK_TIMEOUT))
            located = answer.decode(MetainfoAnswer)
            _check(located.metainfo, digest, host)
            return located

        poll = await self._ask_members(digest, ask, lambda poll: LINGER if poll.found else None)
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
            url = _url(host, f"/internal/blobs/{digest}")
            async with self._http.stream("GET", url, deadline=deadline, expect=(200,)) as answer:
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > limit:
                        raise Rejected("GET", url, f"{digest} has more than {limit} bytes")
            found = await in_thread(Digest.of, body, digest.algorithm)
            if found != digest:
                raise Rejected("GET", url, f"sent {len(body)} bytes with digest {found}")
            return bytes(body)

        poll = await self._ask_members(
            digest, ask, lambda poll: 0.0 if poll.found else None, stagger=HEDGE_AFTER
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
            return await self._size_on(host, digest, deadline)

        poll = await self._ask_members(
            digest, ask, lambda poll: 0.0 if poll.found else None, besides=besides
        )
        if not poll.found:
            raise _not_had(digest, poll)
        holder, size = next(iter(poll.found.items()))
        others = [host for host in self._members(digest) if host != holder]
        return RemoteBlob(self._http, self._health, digest, size, [holder, *others])

    # -- one host -----------------------------------------------------------------------------

    def _members(self, digest: Digest) -> list[str]:
        own = self.owners(digest)
        others = [host for host in owners(digest, self._config.hosts) if host not in own]
        now = time.monotonic()
        return self._health.order(own, now) + self._health.order(others, now)

    async def _ask_members(
        self,
        digest: Digest,
        question: Callable[[str], Awaitable[T]],
        enough: Callable[[Poll[T]], float | None],
        *,
        stagger: float = 0.0,
        besides: str | None = None,
    ) -> Poll[T]:
        """Ask the owners, and when that was not enough, the other members."""
        poll: Poll[T] = Poll()
        if besides in self.members:
            poll.absent.append(besides)
        members = self._members(digest)
        replicas = self._config.replicas
        for group in (members[:replicas], members[replicas:]):
            hosts = [host for host in group if host != besides]
            if hosts and enough(poll) is None:
                await poll.ask(
                    hosts,
                    lambda host: self._noting(host, question(host)),
                    enough=enough,
                    stagger=stagger,
                )
        return poll

    async def _size_on(self, host: str, digest: Digest, deadline: Deadline) -> int:
        """The blob's size on one host; raises `NotFound` when it is not there."""
        present = await self._stat_on(host, [digest], deadline)
        size = present.get(str(digest))
        if size is None:
            raise NotFound("POST", _url(host, "/internal/blobs/stat"), f"no {digest}")
        return size

    async def _stat_on(
        self, host: str, digests: Sequence[Digest], deadline: Deadline
    ) -> dict[str, int]:
        """Sizes of those blobs that are on one host."""
        present: dict[str, int] = {}
        for start in range(0, len(digests), MAX_STAT_DIGESTS):
            batch = digests[start : start + MAX_STAT_DIGESTS]
            body = StatRequest([str(digest) for digest in batch])
            soon = deadline.at_most(ASK_TIMEOUT)
            answer = await self._call(host, "POST", "/internal/blobs/stat", soon, body)
            present |= answer.decode(StatAnswer).present
        return present

    async def _call(
        self, host: str, method: str, path: str, deadline: Deadline, body: object = None
    ) -> Answer:
        call = self._http.call(method, _url(host, path), deadline=deadline, json=body)
        return await self._noting(host, call)

    async def _noting(self, host: str, call: Awaitable[T]) -> T:
        """Await the call; note for the order of hosts whether this one could answer."""
        try:
            answer = await call
        except (Unreachable, Overloaded):
            self._health.failed(host, time.monotonic())
            raise
        except CallFailed:
            self._health.ok(host, time.monotonic())
            raise
        self._health.ok(host, time.monotonic())
        return answer


def _url(host: str, path: str) -> str:
    return f"http://{host}{path}"


def _hold(source: Path | int) -> int:
    """A descriptor of our own, so that the caller may unlink or close what it gave."""
    return (
        os.dup(source) if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    )


def _check(metainfo: Metainfo, digest: Digest, host: str) -> None:
    try:
        metainfo.check()
        if metainfo.digest != str(digest):
            raise InvalidMetainfo(f"it is that of {metainfo.digest}")
    except InvalidMetainfo as error:
        url = _url(host, f"/internal/blobs/{digest}/metainfo")
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
    absent = [NotFound("GET", _url(host, path), "not there") for host in poll.absent]
    failure = combined("GET", path, detail, [*poll.unasked.values(), *absent])
    failure.__cause__ = next(iter(poll.unasked.values()))
    return failure
