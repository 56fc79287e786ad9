# SPDX-License-Identifier: Apache-2.0
"""Repair: every owner of a blob gets its copy, and then what is in excess goes.

A pass looks at all copies on this disk in batches and asks the members that matter which of them
they have (one request per member and batch). `shoal.origin.repair_plan` decides. Passes follow each
other at intervals, and at once when the ring changed, a member is back, or one says that it lost
its disk.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import WouldEvict
from shoal.origin import upkeep_metrics as metrics
from shoal.origin.config import RepairConfig
from shoal.origin.doubts import About, Doubts
from shoal.origin.repair_pass import Pass
from shoal.origin.repair_plan import HOLD, Plan, Said, may_go, others_before, owners_besides, plan
from shoal.origin.retention import Copy
from shoal.store.full import is_unreadable
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Rejected, Unreachable

BATCH = 1_000
"""Copies that are looked at together."""

ASK_WANTED_TIMEOUT = 30.0

AGAIN = 5.0
"""Seconds after which a pass that could not do all is followed by another; doubled each time."""

SETTLED = 5.0
"""Seconds without a further copy after which those that other members made here are looked at."""

_STARTED = "it has not looked at all its copies since it was started"

_MAX_WAITED_FOR = 100_000
"""Blobs of which this host remembers that it waits for another holder to act."""

log = structlog.get_logger()


class OwnCopies(Protocol):
    """The blobs on this disk (`shoal.origin.local.LocalBlobs`). Blocks."""

    def copies(self) -> Iterator[Copy]: ...
    def count(self) -> int: ...
    def recheck(self, digest: Digest) -> bool: ...
    def set_aside(self, digest: Digest) -> None: ...
    def give_up_spare(self, digest: Digest, cutoff: float) -> int | None: ...


class Peers(Protocol):
    """The other members (`shoal.origin.repair_peers.RepairPeers`)."""

    @property
    def replicas(self) -> int: ...
    def rings(self, digests: Iterable[Digest]) -> dict[Digest, list[str]]: ...
    async def sizes(self, host: str, digests: Sequence[Digest]) -> dict[Digest, int]: ...
    async def hold(
        self, host: str, digests: Sequence[Digest], *, kept: bool, unbacked: bool
    ) -> dict[Digest, int]: ...
    async def send(self, host: str, copy: Copy) -> bool: ...


AskWanted = Callable[[Sequence[Digest], Deadline], Awaitable[Collection[Digest]]]
"""Those that a repository has a record of; raises `CallFailed` when that cannot be said."""


@dataclass(slots=True)
class _Look:
    """One copy, and what is known of it."""

    copy: Copy
    ring: list[str]
    whole: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)

    @property
    def said(self) -> Said:
        return Said(self.whole, self.absent)


class Repairer:
    """Repairs from this host's copies; one pass at a time."""

    def __init__(
        self,
        name: str,
        copies: OwnCopies,
        peers: Peers,
        config: RepairConfig,
        *,
        forget: Callable[[Digest], None],
        pinned: Callable[[Digest], bool],
        wanted: AskWanted | None,
        young: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is this host's in the ring.

        `forget` takes a blob that is gone out of the peer endpoint; `pinned` says of a copy that it
        must stay. `wanted` asks the build-indexes: of copies that nobody used for `young` seconds,
        those that no repository needs are left to garbage collection. None: they all stay.
        """
        self._name = name
        self._copies = copies
        self._peers = peers
        self._config = config
        self._forget = forget
        self._pinned = pinned
        self._wanted = wanted
        self._young = young
        self._clock = clock
        self._monotonic = monotonic
        self._changed_at = clock()
        self._wake = asyncio.Event()
        self._asked_for: About = frozenset()
        self._settling: asyncio.TimerHandle | None = None
        self._lacking_since: dict[Digest, float] = {}
        self._slots = asyncio.Semaphore(config.concurrency)
        self._lacking: Counter[str] = Counter()
        self.current: Pass | None = None
        self.last: Pass | None = None
        self.doubts = Doubts()
        """Why `missing` may be too little."""
        self.doubts.arose(None, _STARTED)

    def missing(self) -> dict[str, int]:
        """By member: copies that it lacks, as far as known; each is counted by its first holder."""
        known = self._lacking
        if (look := self.current) is not None:
            # What earlier passes could not make up for, or this one has found besides.
            known = (known - look.made) | look.lacking
        return {host: count for host, count in known.items() if count > 0}

    def unsure(self) -> list[str]:
        """Why there may be more missing than `missing` says, in words."""
        more = self.current.why_not_sure() if self.current is not None else ""
        return [*self.doubts.why(), *([more] if more else [])]

    # -- when -----------------------------------------------------------------------------------

    def ring_changed(self) -> None:
        """Members came or went: look at all, and let no spare copy go for the grace time."""
        self._changed_at = self._clock()
        self.look(why="members have joined or left")

    def look(self, about: Iterable[str] | None = None, *, why: str) -> None:
        """Begin a pass now, or after the one under way; only for these members, or for all.

        `why` they may lack copies, in words: it stands in the status until a pass has told.
        """
        self.doubts.arose(about, why)
        self._call(about)

    def arrived(self) -> None:
        """Another member made a copy here: when no more come, look at what this host has now."""
        if self._settling is not None:
            self._settling.cancel()
        loop = asyncio.get_running_loop()
        self._settling = loop.call_later(SETTLED, self._call)

    def _call(self, about: Iterable[str] | None = None) -> None:
        if about is None:
            self._asked_for = None
        elif self._asked_for is not None:
            self._asked_for |= frozenset(about)
        self._wake.set()

    async def run(self) -> None:
        """Repair for good."""
        self._call()
        again = AGAIN
        due = math.inf
        while True:
            await self._wake.wait()
            self._wake.clear()
            about, self._asked_for = self._asked_for, frozenset()
            try:
                done = await self.look_now(about)
            except OSError as error:
                log.exception("repair failed", error=str(error))
                self.doubts.arose(about, f"a look at its copies failed: {error}")
                pause = again
            else:
                pause = self._pause(done, again)
                again = AGAIN if done.complete else min(2 * again, self._config.interval)
            now = self._monotonic()
            # A look at some members does not put off the one at all: a member that comes and goes
            # would keep the others from ever getting theirs.
            due = now + pause if about is None else min(due, now + pause)
            timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self._call)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    def _pause(self, done: Pass, again: float) -> float:
        # Not in step with the other origins, which were started at the same time.
        pause = self._config.interval * random.uniform(0.9, 1.1)
        if not done.complete:
            pause = min(pause, again)
        return pause if done.wait is None else min(pause, done.wait)

    # -- one pass -------------------------------------------------------------------------------

    async def look_now(self, about: frozenset[str] | None = None) -> Pass:
        """Look at all copies once, for all members or some; send what is missing there."""
        total = await in_thread(self._copies.count)
        begun = self.doubts.begun()
        look = self.current = Pass(self._clock(), total, about)
        waited_for: set[Digest] = set()
        iterator = self._copies.copies()
        try:
            while batch := await in_thread(_next, iterator):
                await self._look_at(batch, look, waited_for)
        finally:
            look.finished = self._clock()
            self.current, self.last = None, look
        if look.complete:
            self.doubts.settled(about, begun)
        else:
            self.doubts.arose(about, "the last look could not ask all members, or serve them")
        if about is None:
            self._lacking = look.lacking
            self._lacking_since = {
                digest: since
                for digest, since in self._lacking_since.items()
                if digest in waited_for
            }
        else:
            rest = {host: n for host, n in self._lacking.items() if host not in about}
            self._lacking = Counter(rest) + look.lacking
        self._show()
        metrics.SPARE.set(look.spare)
        metrics.PASSES.labels("done" if look.complete else "incomplete").inc()
        if look.sent or look.failed or look.removed or look.unasked:
            log.info(
                "repair pass done",
                examined=look.examined,
                sent=look.sent,
                sent_bytes=look.sent_bytes,
                failed=look.failed,
                removed=look.removed,
                unasked=look.unasked,
                seconds=round(look.finished - look.started, 1),
            )
        return look

    def _show(self) -> None:
        metrics.LACKING.set(sum(self.missing().values()))

    async def _look_at(self, batch: Sequence[Copy], look: Pass, waited_for: set[Digest]) -> None:
        rings = await in_thread(self._peers.rings, [copy.digest for copy in batch])
        replicas = self._peers.replicas
        looks = []
        for copy in batch:
            one = _Look(copy, rings[copy.digest])
            own = one.ring[:replicas]
            if self._name in own:
                look.owned += 1
                look.owned_bytes += copy.size
            else:
                look.spare += 1
            if look.about is None or look.about & set(own):
                looks.append(one)
        name = self._name
        await self._ask([(one, owners_besides(name, one.ring, replicas)) for one in looks], look)
        await self._ask(
            [(one, others_before(name, one.ring, replicas, one.said)) for one in looks], look
        )
        plans = [(one, self._plan(one, look, waited_for)) for one in looks]
        await self._send([(one, it) for one, it in plans if it.send], look)
        await self._drop([one for one, it in plans if it.spare], look)
        look.examined += len(batch)

    async def _ask(self, questions: Sequence[tuple[_Look, Sequence[str]]], look: Pass) -> None:
        by_host: dict[str, list[_Look]] = {}
        for one, hosts in questions:
            for host in hosts:
                # Who was silent once would cost each batch its time.
                if host not in look.unasked:
                    by_host.setdefault(host, []).append(one)

        async def ask(host: str, looks: list[_Look]) -> None:
            try:
                sizes = await self._peers.sizes(host, [one.copy.digest for one in looks])
            except CallFailed as error:
                look.unasked[host] = error.detail
                return
            for one in looks:
                size = sizes.get(one.copy.digest)
                if size is None:
                    one.absent.add(host)
                elif size == one.copy.size:
                    one.whole.add(host)

        await asyncio.gather(*(ask(host, looks) for host, looks in by_host.items()))

    def _plan(self, one: _Look, look: Pass, waited_for: set[Digest]) -> Plan:
        now = self._monotonic()
        digest = one.copy.digest
        decided = plan(
            self._name,
            one.ring,
            self._peers.replicas,
            one.said,
            lacking_for=now - self._lacking_since.get(digest, now),
            takeover=self._config.takeover,
        )
        if decided.wait is not None:
            if len(self._lacking_since) < _MAX_WAITED_FOR:
                self._lacking_since.setdefault(digest, now)
            waited_for.add(digest)
            look.wait = min(decided.wait, look.wait or decided.wait)
        return decided

    # -- sending --------------------------------------------------------------------------------

    async def _send(self, plans: Sequence[tuple[_Look, Plan]], look: Pass) -> None:
        if not plans:
            return
        unwanted = await self._unwanted([one.copy for one, _ in plans])
        down: set[str] = set()

        async def send(copy: Copy, host: str, first: bool) -> None:
            async with self._slots:
                if host not in down and await self._send_to(host, copy, look, down) and first:
                    look.got(host)
                    self._show()

        # Those with the fewest copies first.
        plans = sorted(plans, key=lambda item: len(item[0].whole))
        jobs = [
            (one.copy, host, decided.first)
            for one, decided in plans
            if one.copy.digest not in unwanted
            for host in decided.lacking
        ]
        for _, host, first in jobs:
            if first:
                look.lacks(host)
        self._show()
        await asyncio.gather(*(send(*job) for job in jobs))

    async def _send_to(self, host: str, copy: Copy, look: Pass, down: set[str]) -> bool:
        digest = copy.digest
        try:
            sent = await self._peers.send(host, copy)
        except CallFailed as error:
            if error.code == WouldEvict.code:
                return True  # It has evicted its copy, or would have to: a backend has the blob.
            look.failed += 1
            metrics.FAILED.inc()
            if isinstance(error, Unreachable):
                down.add(host)
            log.warning("copy not made", digest=str(digest), host=host, error=error.detail)
            if isinstance(error, Rejected) and error.code == "DIGEST_INVALID":
                # What was sent is not what it should be: then it is this copy that is damaged.
                await self._doubt(self._copies.recheck, digest)
            return False
        except OSError as error:
            look.failed += 1
            metrics.FAILED.inc()
            log.error("a copy cannot be read", digest=str(digest), error=str(error))  # noqa: TRY400
            if is_unreadable(error):
                await self._doubt(self._copies.set_aside, digest)
            return False
        if sent:
            look.sent += 1
            look.sent_bytes += copy.size
            metrics.SENT.inc()
            metrics.SENT_BYTES.inc(copy.size)
        return True

    async def _doubt(self, look_again: Callable[[Digest], object], digest: Digest) -> None:
        """One copy that the disk does not give must not keep the others from being sent."""
        try:
            await in_thread(look_again, digest)
        except OSError as error:
            log.error("a copy cannot be set aside", digest=str(digest), error=str(error))  # noqa: TRY400

    async def _unwanted(self, copies: Iterable[Copy]) -> frozenset[Digest]:
        """Those that are left to garbage collection, which would remove them again."""
        if self._wanted is None:
            return frozenset()
        cutoff = self._clock() - self._young
        old = [copy.digest for copy in copies if copy.last_used < cutoff and not copy.kept]
        old = [digest for digest in old if not self._pinned(digest)]
        if not old:
            return frozenset()
        try:
            wanted = await self._wanted(old, Deadline.after(ASK_WANTED_TIMEOUT))
        except CallFailed as error:
            log.info("repaired without asking who needs it", blobs=len(old), error=error.detail)
            return frozenset()
        return frozenset(old).difference(wanted)

    # -- giving up what is in excess ------------------------------------------------------------

    async def _drop(self, spare: Sequence[_Look], look: Pass) -> None:
        changed_at, now, grace = self._changed_at, self._clock(), self._config.spare_grace
        candidates = {
            one.copy.digest: one
            for one in spare
            if not one.copy.in_use
            and not self._pinned(one.copy.digest)
            and may_go(one.copy.last_used, changed_at, now, grace)
        }
        if not candidates:
            return
        until = self._monotonic() + HOLD / 2
        held = await self._held(list(candidates.values()), look)
        if self._changed_at != changed_at:
            return  # The owners that were asked may be others now.
        for digest in held:
            if self._monotonic() >= until:
                return  # This process was stopped: the owners may count on this copy by now.
            freed = await in_thread(self._copies.give_up_spare, digest, now - grace)
            if freed is None:
                continue
            self._forget(digest)
            look.removed += 1
            look.removed_bytes += freed
            look.spare -= 1
            metrics.REMOVED.inc()
            log.info("spare copy removed", digest=str(digest), size=freed)

    async def _held(self, looks: Sequence[_Look], look: Pass) -> list[Digest]:
        """Those of which every owner says, once more, that it has them and that they stay."""
        questions: dict[tuple[str, bool, bool], list[_Look]] = {}
        for one in looks:
            marks = one.copy.kept, one.copy.unbacked
            for host in one.ring[: self._peers.replicas]:
                questions.setdefault((host, *marks), []).append(one)
        held: Counter[Digest] = Counter()

        async def ask(host: str, kept: bool, unbacked: bool, looks: Sequence[_Look]) -> None:
            try:
                sizes: Mapping[Digest, int] = await self._peers.hold(
                    host, [one.copy.digest for one in looks], kept=kept, unbacked=unbacked
                )
            except CallFailed as error:
                look.unasked[host] = error.detail
                return
            held.update(
                one.copy.digest for one in looks if sizes.get(one.copy.digest) == one.copy.size
            )

        await asyncio.gather(*(ask(*question, asked) for question, asked in questions.items()))
        needed = {one.copy.digest: len(one.ring[: self._peers.replicas]) for one in looks}
        return [digest for digest, count in needed.items() if held[digest] == count]


def _next(copies: Iterator[Copy]) -> list[Copy]:
    return list(islice(copies, BATCH))
