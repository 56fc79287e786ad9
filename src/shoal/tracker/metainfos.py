# SPDX-License-Identifier: Apache-2.0
"""Metainfos in memory, and which origins have each blob.

However many peers join at once, the origins are asked once. What is known is answered at once and
refreshed behind the caller's back. "Not there" is not remembered at all, and an answer of "not
there" to a question from before the caller came is not taken: a push that was acknowledged is seen
by the next join.

The metainfo of a blob that an origin still fetches grows: it is followed until it is whole, by one
question at a time, for all peers that ask for more of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
from cachetools import TTLCache

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, StillFetching, Unavailable
from shoal.origin.client import Located
from shoal.swarm.peers import PeerInfo
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

RETRY = 5.0
"""Seconds after which origins are asked again when not all owners are known to have the blob."""

MAX_PREPARING = 64
"""Questions under way at which announces ask no further ones; joins always ask."""

MAX_LEARNED = 100_000
"""Blobs of which it is remembered that origins were asked about them for announces."""

HOLD = 2.0
"""Seconds for which a peer's question for more of a growing metainfo is held."""

OVERHEAD = 1024
"""Bytes that an entry takes beside its metainfo."""

log = structlog.get_logger()


class Source(Protocol):
    """Where metainfos come from; `shoal.origin.client.OriginCluster` is one."""

    async def metainfo(
        self, digest: Digest, *, deadline: Deadline, namespace: str = "", known: int = 0
    ) -> Located | None: ...


@dataclass(slots=True)
class Entry:
    """What is known of one blob."""

    encoded: bytes
    """The metainfo as JSON, ready to be put into an answer."""

    origins: tuple[PeerInfo, ...]
    """The origins that had the blob when they were last asked."""

    ask_again: float
    """When they are to be asked the next time."""

    known: int
    """Pieces that the metainfo has."""

    whole: bool
    """It has them all."""

    @property
    def bytes(self) -> int:
        return len(self.encoded) + OVERHEAD


_Asking = asyncio.Task[Entry | CallFailed | None]


class Metainfos:
    """A cache bounded in bytes; what was used longest ago goes first."""

    def __init__(
        self,
        source: Source,
        *,
        max_bytes: int,
        timeout: float,
        refresh: float,
        owners: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`owners` is the number of origins that should have a blob."""
        self._source = source
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._refresh = refresh
        self._owners = owners
        self._clock = clock
        self._entries: OrderedDict[Digest, Entry] = OrderedDict()
        self._bytes = 0
        self._asking: dict[tuple[Digest, str], asyncio.Task[Entry | CallFailed | None]] = {}
        self._learned: TTLCache[Digest, bool] = TTLCache(MAX_LEARNED, refresh, timer=clock)
        self._following: dict[Digest, asyncio.Task[None]] = {}
        self._grown: dict[Digest, asyncio.Event] = {}

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return self._bytes

    async def get(
        self,
        digest: Digest,
        *,
        deadline: Deadline,
        namespace: str = "",
        elsewhere: bool = False,
    ) -> Entry:
        """The blob's metainfo and origins.

        `elsewhere` says that agents have the blob, so that a metainfo is of use even if no origin
        is known to have the blob any more. With `namespace`, the origins fetch what none of them
        has from the backend of that repository. Raises `BlobUnknown` when all origins answered
        that it is not there, `StillFetching` when fetching it takes longer, `Unavailable` when
        that could not be found out within the deadline.
        """
        entry = self.peek(digest)
        if entry is not None and (entry.origins or elsewhere):
            return entry
        before = self._asking.get((digest, namespace))
        if before is not None:
            answer = await self._answer(before, digest, deadline)
            if answer is not None:
                return answer
        answer = await self._answer(self._ask(digest, namespace), digest, deadline)
        if answer is None:
            raise BlobUnknown(
                f"no origin has {digest}: all of them were asked", detail={"digest": str(digest)}
            )
        return answer

    async def more(
        self, digest: Digest, *, known: int, deadline: Deadline, namespace: str, elsewhere: bool
    ) -> Entry:
        """As `get`; a growing one once more than `known` pieces are, or as it is after `HOLD`."""
        entry = await self.get(digest, deadline=deadline, namespace=namespace, elsewhere=elsewhere)
        soon = deadline.at_most(HOLD)
        while not entry.whole and entry.known <= known and not soon.expired:
            grown = self._grown.get(digest)
            if grown is None:
                break  # It is followed no more: the next question begins anew.
            try:
                async with asyncio.timeout(soon.remaining()):
                    await grown.wait()
            except TimeoutError:
                break
            entry = self._entries.get(digest, entry)
        return entry

    def peek(self, digest: Digest) -> Entry | None:
        """What is known now, without waiting; refreshed in the background when it is old."""
        entry = self._entries.get(digest)
        if entry is not None:
            self._entries.move_to_end(digest)
            if self._clock() >= entry.ask_again:
                _ = self._ask(digest)
        return entry

    def prepare(self, digest: Digest) -> Entry | None:
        """As `peek`; a blob that is not known is asked about in the background.

        Not if many questions are under way: a later announce will ask.
        """
        entry = self.peek(digest)
        if entry is None and len(self._asking) < MAX_PREPARING:
            _ = self._ask(digest)
        return entry

    def learn(self, digest: Digest) -> None:
        """Ask in the background about a blob that agents have and nobody has joined for.

        So that others can have it from them when no origin answers. Each is asked about once in a
        while at most, also when no origin has it.
        """
        fresh = digest not in self._entries and digest not in self._learned
        if fresh and len(self._asking) < MAX_PREPARING:
            self._learned[digest] = True
            _ = self._ask(digest)

    async def close(self) -> None:
        """End the questions under way."""
        tasks = [*self._asking.values(), *self._following.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, asking: _Asking, digest: Digest, deadline: Deadline) -> Entry | None:
        await asyncio.wait({asking}, timeout=deadline.remaining())
        if not asking.done() or asking.cancelled():
            raise Unavailable(f"the origins did not say in time whether they have {digest}")
        answer = asking.result()
        if isinstance(answer, CallFailed):
            if answer.code == StillFetching.code:
                raise StillFetching(answer.detail) from answer
            raise Unavailable(
                f"cannot tell whether the origins have {digest}: {answer}; try again"
            ) from answer
        return answer

    def _ask(self, digest: Digest, namespace: str = "") -> _Asking:
        """Ask the origins; only one question about a repository's blob is under way at a time."""
        asking = self._asking.get((digest, namespace))
        if asking is None:
            fetching = self._fetch(digest, namespace)
            asking = asyncio.create_task(fetching, name=f"metainfo of {digest}")
            self._asking[digest, namespace] = asking
        return asking

    async def _fetch(self, digest: Digest, namespace: str) -> Entry | CallFailed | None:
        try:
            located = await self._source.metainfo(
                digest, deadline=Deadline.after(self._timeout), namespace=namespace
            )
        except CallFailed as error:
            self._could_not_ask(digest, error)
            return error
        finally:
            del self._asking[digest, namespace]
        if located is None:
            self._not_there(digest)
            return None
        entry = self._keep(digest, located)
        if not entry.whole and digest not in self._following:
            self._grown[digest] = asyncio.Event()
            self._following[digest] = asyncio.create_task(
                self._follow(digest, namespace), name=f"growth of {digest}"
            )
        return entry

    async def _follow(self, digest: Digest, namespace: str) -> None:
        """Ask for more of a growing metainfo until it is whole; forget it when that fails."""
        try:
            while (entry := self._entries.get(digest)) is not None and not entry.whole:
                located = await self._source.metainfo(
                    digest,
                    deadline=Deadline.after(self._timeout),
                    namespace=namespace,
                    known=entry.known,
                )
                if located is None:
                    break
                self._keep(digest, located)
                self._grown[digest].set()
                self._grown[digest] = asyncio.Event()
        except CallFailed as error:
            log.warning("a growing blob was given up", digest=str(digest), error=str(error))
        finally:
            del self._following[digest]
            self._grown.pop(digest).set()
            entry = self._entries.get(digest)
            if entry is not None and not entry.whole:
                self._drop(digest)

    def _keep(self, digest: Digest, located: Located) -> Entry:
        all_there = len(located.peers) >= self._owners
        wait = self._refresh if all_there else min(self._refresh, RETRY)
        metainfo = located.metainfo
        before = self._entries.get(digest)
        # An answer to a question from before the last one. One that is whole is the last, also when
        # what was growing has more pieces: then that was given up, and was not the blob.
        if before is not None and not metainfo.whole and before.known > metainfo.known:
            return before
        if before is not None and before.whole and not metainfo.whole:
            return before
        entry = Entry(
            metainfo.encode(),
            tuple(located.peers),
            self._clock() + wait,
            metainfo.known,
            metainfo.whole,
        )
        self._drop(digest)
        self._entries[digest] = entry
        self._bytes += entry.bytes
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            self._drop(next(iter(self._entries)))
        return entry

    def _could_not_ask(self, digest: Digest, error: CallFailed) -> None:
        entry = self._entries.get(digest)
        if entry is not None:
            entry.ask_again = self._clock() + min(self._refresh, RETRY)
            log.warning("could not refresh origins", digest=str(digest), error=str(error))

    def _not_there(self, digest: Digest) -> None:
        """The metainfo stays true as long as agents have the blob."""
        entry = self._entries.get(digest)
        if entry is not None:
            entry.origins = ()
            entry.ask_again = self._clock() + min(self._refresh, RETRY)

    def _drop(self, digest: Digest) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._bytes -= entry.bytes
