# SPDX-License-Identifier: Apache-2.0
"""The origins as one: how proxy, build-index, tracker, agent and origins reach them.

The client knows the ring. It asks every owner, then every other member (when the ring changes,
blobs stay where they are until they are repaired), before it says "not there"; and it never says
"not there" when it was "could not ask".
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlencode

from shoal.model.digest import Digest
from shoal.model.errors import Denied
from shoal.origin.members import ASK_TIMEOUT, Change, Members
from shoal.origin.messages import (
    MAX_STAT_DIGESTS,
    MetainfoAnswer,
    Owing,
    PrefetchAnswer,
    SizeAnswer,
    StatRequest,
)
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
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected, Unreachable, combined
from shoal.web.hosts import HostList
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

__all__ = [
    "Change",
    "Located",
    "OriginCluster",
    "Presence",
    "QuorumFailed",
    "RemoteBlob",
    "UploadResult",
    "denied",
]

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

    async def start(self, *, check: bool = True) -> None:
        """Follow the list of members, and unless `check` is False check their health.

        Returns once the list was looked up, or could not be for a few seconds. Without it only a
        written list is known, and only failures of real calls count.
        """
        await self._members.start(check=check)

    async def close(self) -> None:
        """End what `start` began; copies under way are `drain`'s."""
        await self._members.close()

    def watch(self, watcher: Callable[[Change], None]) -> None:
        """Tell the watcher of changes of the ring: who came and left, who is healthy again."""
        self._members.watch(watcher)

    @property
    def listed(self) -> HostList:
        """The list that the members come from."""
        return self._members.listed

    def healthy(self, host: str) -> bool:
        """Whether the member passes its checks; one that is not checked does."""
        return self._members.healthy(host)

    @property
    def ring(self) -> Members:
        """The members one at a time, for those who look after the copies."""
        return self._members

    @property
    def members(self) -> tuple[str, ...]:
        """All hosts of the ring."""
        return self._members.hosts

    def owners(self, digest: Digest) -> list[str]:
        """The hosts (``host:port``) that should have the blob, best first."""
        return self._members.owners(digest)

    # -- asking -------------------------------------------------------------------------------

    async def stat(
        self, digest: Digest, *, deadline: Deadline, keep: bool = False, namespace: str = ""
    ) -> int | None:
        """The size of the blob, or None: it is not there.

        With `namespace`, the backend of that repository is asked for what no origin has; nothing is
        fetched.

        `keep`: the caller relies on it from now on, so its grace time begins anew on every host
        that has it and answers in time, normally the write quorum.

        A blob that was acknowledged is on at least `write_quorum` hosts. So "not there" is certain
        as soon as fewer hosts than that are silent, and one dead origin does not stop a push from
        finding out that it must send a layer. Raises `Unreachable` when more could not be asked,
        in any of the attempts of `ASK_AGAIN`.
        """
        try:
            return await retrying(
                lambda left: self._stat(digest, left, keep, namespace),
                policy=ASK_AGAIN,
                deadline=deadline,
                rng=self._rng,
            )
        except RetriesExhausted as exhausted:
            raise exhausted.last from exhausted

    async def _stat(
        self, digest: Digest, deadline: Deadline, keep: bool, namespace: str
    ) -> int | None:
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
        if namespace:
            path = f"/internal/blobs/{digest}/backend"
            answer = await self._at_backend(digest, "GET", path, namespace, deadline)
            if answer is not None:
                return answer.decode(SizeAnswer).size
        if len(poll.absent) > wanted and not self._members.unknown():
            return None
        raise _could_not_ask(digest, poll)

    async def readiness(self) -> list[str]:
        """Nothing if enough origins answer for a push to be taken; else which do not, and why."""
        quorum = self._members.config.write_quorum
        if missing := self._members.listed.missing():
            return missing
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
        self,
        digests: Iterable[Digest],
        *,
        deadline: Deadline,
        keep: bool = False,
        namespace: str = "",
    ) -> Presence:
        """Where each of the blobs is. One request (or one per 1,000 blobs) to each host.

        Digests that no owner has are asked for at the other members, and last at unhealthy ones. A
        digest that is not in `sizes` is certainly not there only when nobody is in `unasked`.
        `keep`: the caller relies on them from now on, so their grace time begins anew where
        `copies` says they are, and hosts are asked until the write quorum has each. With
        `namespace`, these hosts see to it besides that the backend of that repository gets them;
        backends are not asked here.
        """
        wanted = list(dict.fromkeys(digests))
        rounds = {digest: self._members.rounds(digest) for digest in wanted}

        async def ask(host: str, batch: Sequence[Digest]) -> dict[Digest, int]:
            if namespace:
                return await self._sizes_for(host, batch, deadline, keep, namespace)
            return await self._members.sizes_on(host, batch, deadline, keep=keep)

        quorum = self._members.config.write_quorum
        enough = quorum if keep else 1
        census = Census(ask, quorum=quorum, linger=LINGER)
        for turn in range(max(map(len, rounds.values()), default=0)):
            lacking = [digest for digest in wanted if census.copies(digest) < enough]
            await census.round({digest: rounds[digest][turn] for digest in lacking})
        census.unasked |= self._members.unknown()
        return census.presence()

    async def _sizes_for(
        self, host: str, digests: Sequence[Digest], deadline: Deadline, keep: bool, namespace: str
    ) -> dict[Digest, int]:
        present: dict[Digest, int] = {}
        for start in range(0, len(digests), MAX_STAT_DIGESTS):
            part = digests[start : start + MAX_STAT_DIGESTS]
            request = StatRequest([*map(str, part)], keep, namespaces=[namespace])
            sizes = await self._members.stat(host, request, deadline)
            present |= {digest: sizes[str(digest)] for digest in part if str(digest) in sizes}
        return present

    async def metainfo(
        self, digest: Digest, *, deadline: Deadline, namespace: str = "", known: int = 0
    ) -> Located | None:
        """The blob's pieces and the origins that have it, or None: it is not there.

        While an origin still fetches the blob, the metainfo is not whole: ask again with the number
        of pieces that are `known`, and the answer is held for some seconds until there are more.

        With `namespace`, an origin fetches what no origin has from the backend of that repository;
        `Overloaded` with the code `StillFetching.code` means that this takes longer. Raises
        `Unreachable` when nobody has it and somebody could not be asked.
        """

        async def ask(host: str, deadline: Deadline) -> MetainfoAnswer:
            path = f"/internal/blobs/{digest}/metainfo?known={known}"
            answer = await self._members.call(host, "GET", path, deadline.at_most(ASK_TIMEOUT))
            located = answer.decode(MetainfoAnswer)
            _check(located.metainfo, digest, host)
            return located

        async def ask_all(soon: Deadline, absent: int) -> Poll[MetainfoAnswer]:
            return await self._members.poll(
                digest,
                lambda host: self._members.noting(host, ask(host, soon)),
                lambda poll: LINGER if poll.found or len(poll.absent) > absent else None,
            )

        poll = await self._or_fetched(ask_all, digest, namespace, deadline, begun=True)
        if not poll.found:
            if poll.unasked:
                raise _could_not_ask(digest, poll)
            return None
        first, *others = poll.found.values()
        agreeing = [first, *(other for other in others if other.metainfo == first.metainfo)]
        return Located(first.metainfo, [answer.peer for answer in agreeing])

    # -- reading ------------------------------------------------------------------------------

    async def read(
        self, digest: Digest, *, deadline: Deadline, limit: int, namespace: str = ""
    ) -> bytes:
        """The whole of a small blob (a manifest), of at most `limit` bytes; its digest is verified.

        `namespace` as in `metainfo`. A body comes from one host alone. Raises `NotFound` when all
        members answered that it is not there, `Unreachable` when nobody gave it and somebody could
        not be asked.
        """

        async def ask(host: str, deadline: Deadline) -> bytes:
            body = bytearray()
            url = self._members.http.url(host, f"/internal/blobs/{digest}")
            async with self._members.http.stream(
                "GET", url, deadline=deadline.at_most(ASK_TIMEOUT), expect=(200,)
            ) as answer:
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > limit:
                        raise Rejected("GET", url, f"{digest} has more than {limit} bytes")
            found = await in_thread(Digest.of, body, digest.algorithm)
            if found != digest:
                raise Rejected("GET", url, f"sent {len(body)} bytes with digest {found}")
            return bytes(body)

        async def ask_all(soon: Deadline, absent: int) -> Poll[bytes]:
            return await self._members.poll(
                digest,
                lambda host: self._members.noting(host, ask(host, soon)),
                lambda poll: _settled(poll, absent),
                stagger=HEDGE_AFTER,
            )

        poll = await self._or_fetched(ask_all, digest, namespace, deadline)
        if poll.found:
            return next(iter(poll.found.values()))
        raise _not_had(digest, poll)

    async def open(
        self,
        digest: Digest,
        *,
        deadline: Deadline,
        besides: str | None = None,
        namespace: str = "",
    ) -> RemoteBlob:
        """The blob as a stream, wherever it is; bytes flow when its segments are read.

        `namespace` as in `metainfo`.
        `besides` is a member that is known not to have it: an origin that asks the others.
        Raises `NotFound` when all members answered that it is not there, `Unreachable` when nobody
        has it and somebody could not be asked.
        """

        async def ask_all(soon: Deadline, absent: int) -> Poll[int]:
            return await self._members.poll(
                digest,
                lambda host: self._members.size_on(host, digest, soon),
                lambda poll: _settled(poll, absent),
                besides=besides,
            )

        poll = await self._or_fetched(ask_all, digest, namespace, deadline)
        if not poll.found:
            raise _not_had(digest, poll)
        holder, size = next(iter(poll.found.items()))
        others = [host for host in self._members.in_turn(digest) if host != holder]
        return RemoteBlob(
            self._members.http, self._members.health.failed, digest, size, [holder, *others]
        )

    # -- backends -----------------------------------------------------------------------------

    async def _or_fetched(
        self,
        ask_all: Callable[[Deadline, int], Awaitable[Poll[T]]],
        digest: Digest,
        namespace: str,
        deadline: Deadline,
        *,
        begun: bool = False,
    ) -> Poll[T]:
        """Ask all; when nobody has the blob, have it fetched from its backend, and ask again.

        `begun`: ask again when an origin has begun to fetch it. `ask_all` returns when more members
        than it is told have not got it. One that hangs keeps nobody from what the backend has; only
        before "not there" is said all are waited for.
        """
        everyone = len(self.members)
        if not namespace:
            return await ask_all(deadline, everyone)
        soon = deadline.at_most(deadline.remaining() / 2)
        poll = await ask_all(soon, max(0, everyone - self._members.config.write_quorum))
        if poll.found or (poll.unasked and not poll.absent):
            return poll  # Where nobody said anything, nobody would fetch it.
        path = f"/internal/blobs/{digest}/refresh"
        more = {"begun": "true"} if begun else {}
        fetched = await self._at_backend(digest, "POST", path, namespace, deadline, **more)
        if fetched is None and len(poll.absent) + len(poll.unasked) >= everyone:
            return poll
        return await ask_all(deadline, everyone)

    async def _at_backend(
        self,
        digest: Digest,
        method: str,
        path: str,
        namespace: str,
        deadline: Deadline,
        **more: str,
    ) -> Answer | None:
        """Ask the first origin that can be reached; its answer, or None: the backend has it not.

        Raises `Unreachable` when no origin, `Overloaded` when no backend could be asked.
        """
        last: CallFailed = Unreachable(method, path, "no origin is known")
        for host in self._members.in_turn(digest):
            try:
                return await self._ask_by(host, method, path, namespace, deadline, **more)
            except NotFound:
                return None
            except Unreachable as error:
                last = error
                if deadline.expired:
                    break
        raise last

    async def _ask_by(
        self, host: str, method: str, path: str, namespace: str, deadline: Deadline, **more: str
    ) -> Answer:
        query = urlencode({"namespace": namespace, **more})
        url = self._members.http.url(host, f"{path}?{query}")
        try:
            return await self._members.http.call(method, url, deadline=deadline)
        except Unreachable:
            # Another failure is one of the backend: it says nothing against the origin.
            self._members.health.failed(host)
            raise

    async def _size_by(
        self, host: str, method: str, path: str, namespace: str, deadline: Deadline, **more: str
    ) -> int:
        answer = await self._ask_by(host, method, path, namespace, deadline, **more)
        return answer.decode(SizeAnswer).size

    async def prefetch(
        self, digest: Digest, namespace: str, *, deadline: Deadline
    ) -> PrefetchAnswer | None:
        """Have the blob fetched to the origins, if none has it; returns before it is there.

        None: neither is it there nor at the backend of the repository `namespace`. Raises
        `CallFailed` when nobody could be asked, or so much is being fetched that it was not noted.
        """
        path = f"/internal/blobs/{digest}/prefetch"
        answer = await self._at_backend(digest, "POST", path, namespace, deadline)
        return None if answer is None else answer.decode(PrefetchAnswer)

    async def refresh_at(
        self, host: str, digest: Digest, namespace: str, *, deadline: Deadline, begun: bool
    ) -> int:
        """Have this member fetch the blob from the backend itself; its size.

        `begun`: return when it has begun to.

        Raises `NotFound` when it is not there, and other `CallFailed`.
        """
        path = f"/internal/blobs/{digest}/refresh"
        more = {"led": "true", "begun": "true" if begun else "false"}
        return await self._size_by(host, "POST", path, namespace, deadline, **more)

    async def stat_backend_at(
        self, host: str, digest: Digest, namespace: str, *, deadline: Deadline
    ) -> int:
        """The size that the backend has, as this member finds out itself; nothing is fetched.

        Raises `NotFound` when it is not there, and other `CallFailed`.
        """
        path = f"/internal/blobs/{digest}/backend"
        return await self._size_by(host, "GET", path, namespace, deadline, led="true")

    async def settle_at(
        self, host: str, digest: Digest, namespace: str, *, deadline: Deadline
    ) -> None:
        """Return when this member knows that the repository's backend has the blob.

        Raises `CallFailed`.
        """
        path = f"/internal/blobs/{digest}/writeback"
        await self._ask_by(host, "POST", path, namespace, deadline)

    def before(self, name: str, digest: Digest) -> list[str]:
        """The healthy members that come before this one in the blob's order."""
        ring = self._members.ring(digest)
        place = ring.index(name) if name in ring else len(ring)
        return [host for host in ring[:place] if self.healthy(host)]

    async def owing_at(
        self, host: str, repository: str, digest: Digest, *, deadline: Deadline
    ) -> Owing | None:
        """Whether this member is still to write the blob to the repository's backend.

        Raises `CallFailed`.
        """
        return await self._members.owing_at(host, repository, digest, deadline)

    async def check_push(self, namespace: str, *, deadline: Deadline) -> None:
        """Raise `Denied` when a push to the repository would be refused by the origins.

        Asks any origin; raises `CallFailed` when none could be asked.
        """
        path = f"/internal/push-check?{urlencode({'namespace': namespace})}"
        last: CallFailed = Unreachable("GET", path, "no origin is known")
        for host in self._members.healthy_first(self.members):
            try:
                await self._members.call(host, "GET", path, deadline)
            except CallFailed as error:
                if error.code == Denied.code:
                    raise denied(error) from error
                last = error
            else:
                return
        raise last


def denied(error: CallFailed) -> Denied:
    """What an origin refused, as an answer to the one who pushed."""
    answer = error.body["errors"][0]
    return Denied(answer.get("message", error.detail), detail=answer.get("detail"))


def _check(metainfo: Metainfo, digest: Digest, host: str) -> None:
    try:
        metainfo.check(growing=True)
        if metainfo.digest != str(digest):
            raise InvalidMetainfo(f"it is that of {metainfo.digest}")
    except InvalidMetainfo as error:
        url = f"{host}/internal/blobs/{digest}/metainfo"
        raise Unreachable("GET", url, f"the metainfo is not that of {digest}: {error}") from error


def _settled(poll: Poll[T], absent: int) -> float | None:
    """Whether somebody has it, or more than so many have not: see `Poll.ask`."""
    if poll.found:
        return 0.0
    return LINGER if len(poll.absent) > absent else None


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
    absent = [NotFound("GET", host + path, "not there") for host in poll.absent]
    failure = combined("GET", path, detail, [*poll.unasked.values(), *absent])
    failure.__cause__ = next(iter(poll.unasked.values()))
    return failure
