# SPDX-License-Identifier: Apache-2.0
"""How peers and services call the trackers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar
from urllib.parse import urlencode

import msgspec

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, StillFetching
from shoal.ring.config import HostsConfig
from shoal.ring.health import Health
from shoal.ring.rendezvous import owners
from shoal.swarm.metainfo import InvalidMetainfo, Metainfo
from shoal.swarm.peers import PeerInfo
from shoal.tracker.messages import (
    MAX_ANNOUNCED,
    AnnounceAnswer,
    AnnouncedBlob,
    AnnounceRequest,
    InstanceAnswer,
    Joined,
    JoinRequest,
    LeaveRequest,
    MetainfoRead,
)
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Unreachable
from shoal.web.hosts import HostList
from shoal.web.probe import silent

ASK_TIMEOUT = 10.0
"""Seconds for one tracker to answer; it may have to ask the origins first."""

READINESS_TIMEOUT = 2.0

T = TypeVar("T")


class TrackerClient:
    """All trackers as one.

    Each digest has its own tracker, by rendezvous hashing; when that one cannot be asked, the next
    in order takes its place.

    Every method raises `shoal.web.failures.CallFailed` when no tracker could answer within the
    deadline.
    """

    def __init__(
        self,
        http: HttpClient,
        config: HostsConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self.listed = HostList(config, "tracker")
        self._clock = clock
        self._health = Health()
        self._instances: dict[str, str] | None = None

    async def start(self) -> None:
        """Look up and follow the list of trackers; a written list needs no start."""
        await self.listed.start()

    async def close(self) -> None:
        """Follow the list no longer."""
        await self.listed.close()

    @property
    def _hosts(self) -> tuple[str, ...]:
        return self.listed.hosts

    async def join(
        self,
        digest: Digest,
        peer: PeerInfo,
        *,
        namespace: str = "",
        complete: bool = False,
        deadline: Deadline,
    ) -> Joined:
        """Metainfo and peers of a blob; from now on others are told of this peer.

        Raises `BlobUnknown` when all origins answered that it is not there.
        """
        request = JoinRequest(str(digest), peer, namespace, complete)
        answer = await self._ask(digest, "POST", "/join", request, deadline)
        joined = answer.decode(Joined)
        _check(joined.metainfo, digest, answer)
        return joined

    async def metainfo(
        self, digest: Digest, *, deadline: Deadline, namespace: str = "", known: int = 0
    ) -> Metainfo:
        """The metainfo without joining; raises `BlobUnknown`.

        Of one that grows as it is while more than `known` pieces are, else held for some seconds.
        """
        query = urlencode({"namespace": namespace, "known": known})
        path = f"/blobs/{digest}/metainfo?{query}"
        answer = await self._ask(digest, "GET", path, None, deadline)
        metainfo = answer.decode(MetainfoRead).metainfo
        _check(metainfo, digest, answer)
        return metainfo

    async def announce(
        self, peer: PeerInfo, blobs: Iterable[AnnouncedBlob], *, deadline: Deadline
    ) -> AnnounceAnswer:
        """The peer still has or fetches these blobs; peers for those that it fetches.

        One request per tracker. What only unreachable trackers could have taken is left out; raises
        only when no tracker at all could be told.
        """
        answers = await self._each_tracker(
            {Digest.parse(blob.digest): blob for blob in blobs},
            lambda batch: ("/announce", AnnounceRequest(peer, batch)),
            deadline,
        )
        decoded = [answer.decode(AnnounceAnswer) for answer in answers]
        peers = {digest: found for answer in decoded for digest, found in answer.peers.items()}
        shares = {digest: share for answer in decoded for digest, share in answer.shares.items()}
        return AnnounceAnswer(min((a.interval_s for a in decoded), default=0.0), peers, shares)

    async def leave(
        self, peer_id: str, digests: Iterable[Digest] | None = None, *, deadline: Deadline
    ) -> None:
        """The peer gives up these blobs, or all of them (None)."""
        if digests is None:
            request = LeaveRequest(peer_id)
            told = await asyncio.gather(
                *(self._call(host, "POST", "/leave", request, deadline) for host in self._hosts),
                return_exceptions=True,
            )
            _raise_unless_some(told)
            return
        await self._each_tracker(
            {digest: str(digest) for digest in digests},
            lambda batch: ("/leave", LeaveRequest(peer_id, batch)),
            deadline,
        )

    async def changed(self) -> bool:
        """Whether a tracker came, died, came back or started anew since this was last asked.

        Then it has to be announced again what is here: a tracker that started anew knows nobody,
        and one that died has left its blobs to others. Costs one small request to each tracker.
        """
        hosts = self._hosts
        now = await asyncio.gather(*(self._instance(host) for host in hosts))
        before, self._instances = self._instances, dict(zip(hosts, now, strict=True))
        return before is not None and before != self._instances

    async def _instance(self, host: str) -> str:
        """Which process answers at a tracker's address; nothing when none does."""
        deadline = Deadline.after(READINESS_TIMEOUT)
        try:
            answer = await self._call(host, "GET", "/instance", None, deadline)
            return answer.decode(InstanceAnswer).instance
        except CallFailed:
            return ""

    async def readiness(self) -> list[str]:
        """Nothing if a tracker is alive; else each of them and why it is not."""
        if missing := self.listed.missing():
            return missing
        hosts = await silent(
            self._http, self._hosts, "/health", enough=1, timeout=READINESS_TIMEOUT
        )
        return [f"tracker {host}: {why}" for host, why in hosts.items()]

    def _ordered(self, digest: Digest) -> list[str]:
        return self._health.order(owners(digest, self._hosts), self._clock())

    async def _ask(
        self,
        digest: Digest,
        method: str,
        path: str,
        request: msgspec.Struct | None,
        deadline: Deadline,
    ) -> Answer:
        hosts = self._ordered(digest)
        last: CallFailed = Unreachable(method, path, self.listed.why_empty())
        for position, host in enumerate(hosts):
            share = deadline.at_most(deadline.remaining() / (len(hosts) - position))
            share = share.at_most(ASK_TIMEOUT)
            try:
                return await self._call(host, method, path, request, share)
            except NotFound as error:
                if error.code == BlobUnknown.code:
                    raise BlobUnknown(
                        f"no origin has {digest} (asked by {host})", detail={"digest": str(digest)}
                    ) from error
                last = error
            except (Unreachable, Overloaded) as error:
                if error.code == StillFetching.code:
                    raise  # the other trackers would wait for the same origins
                last = error
        raise last

    async def _each_tracker(
        self,
        items: dict[Digest, T],
        request: Callable[[list[T]], tuple[str, msgspec.Struct]],
        deadline: Deadline,
    ) -> list[Answer]:
        """Give each item to the tracker of its digest, or when that one fails, to the next."""
        orders = {digest: self._ordered(digest) for digest in items}
        waiting = list(items)
        answers: list[Answer | BaseException] = []
        attempts = max(map(len, orders.values()), default=0)
        if items and not attempts:
            raise Unreachable("POST", "trackers", self.listed.why_empty())
        for attempt in range(attempts):
            batches: dict[str, list[Digest]] = {}
            for digest in waiting:
                batches.setdefault(orders[digest][attempt], []).append(digest)
            parts = [
                (host, batch[start : start + MAX_ANNOUNCED])
                for host, batch in batches.items()
                for start in range(0, len(batch), MAX_ANNOUNCED)
            ]
            share = deadline.at_most(deadline.remaining() / (attempts - attempt))
            told = await asyncio.gather(
                *(
                    self._call(host, "POST", *request([items[digest] for digest in part]), share)
                    for host, part in parts
                ),
                return_exceptions=True,
            )
            answers += told
            waiting = [
                digest
                for (_, part), answer in zip(parts, told, strict=True)
                if isinstance(answer, Unreachable | Overloaded)
                for digest in part
            ]
            if not waiting:
                break
        return _raise_unless_some(answers)

    async def _call(
        self,
        host: str,
        method: str,
        path: str,
        request: msgspec.Struct | None,
        deadline: Deadline,
    ) -> Answer:
        headers = {"Content-Type": "application/json"} if request is not None else None
        body = None if request is None else msgspec.json.encode(request)
        try:
            answer = await self._http.call(
                method, self._http.url(host, path), deadline=deadline, headers=headers, data=body
            )
        except (Unreachable, Overloaded):
            self._health.failed(host, self._clock())
            raise
        self._health.ok(host, self._clock())
        return answer


def _raise_unless_some(told: Sequence[Answer | BaseException]) -> list[Answer]:
    """The answers; without any, raises the last failure. Bugs are raised in any case."""
    failed = [answer for answer in told if isinstance(answer, BaseException)]
    for failure in failed:
        if not isinstance(failure, CallFailed):
            raise failure
    answers = [answer for answer in told if not isinstance(answer, BaseException)]
    if failed and not answers:
        raise failed[-1]
    return answers


def _check(metainfo: Metainfo, digest: Digest, answer: Answer) -> None:
    try:
        metainfo.check(growing=True)
    except InvalidMetainfo as error:
        raise Unreachable(answer.method, answer.url, str(error), status=200) from error
    if metainfo.digest != str(digest):
        what = f"the answer has the metainfo of {metainfo.digest} instead of {digest}"
        raise Unreachable(answer.method, answer.url, what, status=200)
