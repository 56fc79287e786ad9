# SPDX-License-Identifier: Apache-2.0
"""Write-back: what was pushed to the origins is written to the backend of its repository.

Each owner of a blob notes the task, durably, before its copy counts as made: nothing that was
acknowledged can be forgotten, and no start has to look for it. The first owner writes at once; the
others look after it (`stagger` seconds later for each place in the ring's order), find the blob in
the backend, and write it only when it is not there and those before them are gone, owe it no more
or fail where they would not (`shoal.origin.turns`). Until then a copy is pinned: neither garbage
collection nor eviction removes it, also when its task was given up.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, Self
from weakref import WeakValueDictionary

import msgspec
import structlog

from shoal.backend.base import BlobName
from shoal.model.digest import Digest
from shoal.model.errors import BadRequest, BlobUnknown, Unavailable
from shoal.origin import metrics
from shoal.origin.backends import BlobBackends, Matched
from shoal.origin.config import OriginConfig, WriteBackConfig
from shoal.origin.local import LocalBlobs, Whole
from shoal.origin.messages import Owing
from shoal.origin.presence import Presence
from shoal.origin.turns import Turn, Turns
from shoal.queue.config import queue_file
from shoal.queue.durable import DurableQueue
from shoal.queue.tasks import Hopeless, Postponed, State, Task
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Unreachable

QUEUE = "writeback"

ATTEMPT_TIMEOUT = 60.0
"""Seconds for each question of an attempt; the transfer gets the time for its bytes besides."""

TURN_TIMEOUT = 5.0
"""Seconds for another origin to say whether it still owes a blob."""

CONFIRM_TIMEOUT = 5.0
"""Seconds for a backend to say that it still has a blob that is to be evicted."""

SILENT_FOR = 10.0
"""Seconds for which one that did not say so is not asked again."""

SLOWEST = 64 * 1024
"""Bytes per second below which a transfer to a backend is given up and tried again."""

log = structlog.get_logger()


class Owed(msgspec.Struct, frozen=True):
    """The payload of a task: what `shoal queue` shows of it."""

    repository: str
    digest: str
    rank: int
    """This origin's place among the blob's owners."""


class Ring(Protocol):
    """The other origins (`shoal.origin.client.OriginCluster`)."""

    def owners(self, digest: Digest) -> list[str]: ...

    def before(self, name: str, digest: Digest) -> list[str]: ...

    async def owing_at(
        self, host: str, repository: str, digest: Digest, *, deadline: Deadline
    ) -> Owing | None: ...

    async def stat_many(
        self, digests: Iterable[Digest], *, deadline: Deadline, keep: bool, namespace: str
    ) -> Presence: ...


@dataclass(frozen=True, slots=True)
class _Debt:
    """That a repository's backend is to have the blob."""

    repository: str
    matched: Matched

    @property
    def entry(self) -> str:
        """How the sidecar ``backed`` notes that it has."""
        return f"{self.matched.key}|{self.repository}"

    def task(self, digest: Digest) -> str:
        """The key of the task."""
        return f"{self.matched.key}|{digest}"


class WriteBack:
    """The tasks of one origin. Made by `start`."""

    def __init__(
        self,
        name: str,
        local: LocalBlobs,
        ring: Ring,
        *,
        backends: BlobBackends,
        config: WriteBackConfig,
    ) -> None:
        self._name = name
        self._local = local
        self._ring = ring
        self._backends = backends
        self._config = config
        self._owed: dict[Digest, dict[str, str]] = {}
        self._taking: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._silent: dict[str, float] = {}
        self._turns = Turns()
        self._awaited: Counter[str] = Counter()
        """Tasks for which somebody waits here."""
        self._without_copy: set[str] = set()
        """Tasks under way that found no copy here."""
        self._writing: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._queue: DurableQueue

    @classmethod
    async def start(
        cls,
        config: OriginConfig,
        local: LocalBlobs,
        ring: Ring,
        backends: BlobBackends,
    ) -> Self:
        """Open the queue, pin what it names, and begin to work.

        Raises `QueueUnusable` and `OSError`.
        """
        settings = config.writeback
        work = cls(config.member, local, ring, backends=backends, config=settings)
        path = queue_file(config.data_dir, QUEUE)
        work._queue = await DurableQueue.open(QUEUE, path, settings, work)
        for task in await work._queue.tasks():
            owed = _owed(task)
            work._owed.setdefault(Digest.parse(owed.digest), {})[task.key] = owed.repository
        local.pinned_by(work.is_pinned)
        local.backing.known_by(work.leads_somewhere, work.confirm)
        work._queue.start()
        return work

    async def stop(self, grace: float) -> None:
        """Give the transfers under way `grace` seconds; the others go on at the next start."""
        await self._queue.stop(grace)

    # -- for those who keep copies ------------------------------------------------------------

    def is_pinned(self, digest: Digest) -> bool:
        """Whether this copy must stay as a backend has not got it yet. From any thread."""
        return digest in self._owed

    def owing(self) -> int:
        """How many blobs a backend has not got yet."""
        return len(self._owed)

    def pending(self, digest: Digest) -> list[str]:
        """The repositories whose backend is still to be given the blob.

        Not those that the config gives none any more: others would refuse the copy with them.
        """
        owing = sorted(set(self._owed.get(digest, {}).values()))
        return [repository for repository in owing if self._backends.takes_pushes(repository)]

    def check(self, repositories: Iterable[str]) -> None:
        """Raise `Denied` when a push to one of them could not be written to a backend."""
        for repository in repositories:
            self._backends.target(repository)

    def leads_somewhere(self, entry: str) -> bool:
        """Whether a blob could be fetched by what was noted of its backend. From any thread."""
        key, _, repository = entry.rpartition("|")
        return self._backends.leads_to(key, repository)

    async def confirm(self, digest: Digest) -> bool:
        """Whether the backends still have a blob of which it is noted that they do.

        What one has lost is written there anew. Upstream registries are not asked: nothing that was
        pushed is evicted for their sake.
        """
        whole = await in_thread(self._local.find, digest)
        if whole is None:
            return False
        for entry in await in_thread(self._local.backing.entries, digest):
            repository = entry.rpartition("|")[2]
            matched = self._backends.source(repository)
            if matched is None or time.monotonic() < self._silent.get(matched.key, 0.0):
                return False
            if matched.upstream:
                continue
            name, soon = BlobName(repository, digest), Deadline.after(CONFIRM_TIMEOUT)
            try:
                if await matched.stored(name, whole.metainfo.size, deadline=soon):
                    continue
            except CallFailed as error:
                self._silent[matched.key] = time.monotonic() + SILENT_FOR
                log.warning("nothing is evicted: a backend is silent", error=str(error))
                return False
            await self._lost(digest, repository, matched)
            return False
        return True

    async def _lost(self, digest: Digest, repository: str, matched: Matched) -> None:
        log.error(
            "a backend has lost a blob",
            digest=str(digest),
            repository=repository,
            storage=matched.backend.description,
        )
        await in_thread(self._local.forget_backed, digest)
        if self._backends.takes_pushes(repository):
            async with self.taking(digest, [repository]):
                pass  # it is here

    def are_unbacked(self, repositories: Iterable[str]) -> bool:
        """Whether one of them has no backend, so that what it has must stay on the origins."""
        return any(map(self._backends.has_none, repositories))

    def entries(self, repositories: Iterable[str]) -> list[str]:
        """How the sidecar ``backed`` notes that these repositories' backends have a blob."""
        matched = ((name, self._backends.source(name)) for name in repositories)
        return [_Debt(name, match).entry for name, match in matched if match is not None]

    @asynccontextmanager
    async def taking(self, digest: Digest, repositories: Sequence[str]) -> AsyncIterator[None]:
        """Note that the backends of these repositories are to have the blob; then keep it, inside.

        The note is durable before the copy has its name; it is taken back when keeping it fails.
        Raises `Denied`, and `Unavailable` when it cannot be noted.
        """
        debts = await self._debts(digest, repositories)
        if not debts:
            yield
            return
        async with _lock(self._taking, digest):
            added = await self._add(digest, debts)
            try:
                yield
            except BaseException:
                await asyncio.shield(self._take_back(digest, added))
                raise

    async def settle(self, digest: Digest, repository: str, deadline: Deadline) -> None:
        """Return when the repository's backend has the blob, which is on this origin.

        Raises `Denied`, `BadRequest` (no backend is configured), `BlobUnknown` (it is not on this
        origin), `Unavailable` (not written by the deadline; that goes on).
        """
        matched = self._backends.target(repository)
        if matched is None:
            raise BadRequest(f"no backend is configured that {digest} could be written to")
        if await in_thread(self._local.find, digest) is None:
            raise BlobUnknown(f"{digest} is not on {self._name}", detail={"digest": str(digest)})
        async with self.taking(digest, [repository]):
            pass
        key = _Debt(repository, matched).task(digest)
        self._awaited[key] += 1
        try:
            late = await self._queue.settled([key], deadline)
        finally:
            self._awaited[key] -= 1
            if not self._awaited[key]:
                del self._awaited[key]
        if late:
            why = late[0].error or "that takes longer than this request waits"
            raise Unavailable(
                f"{digest} is stored on the origins, and is not in {matched.backend.description} "
                f"yet: {why}. It is tried again",
                detail={"digest": str(digest), "storage": matched.backend.description},
                retry_after=5,
            )

    async def owed(self, asked: Sequence[tuple[str, Digest]]) -> list[Owing | None]:
        """Of repositories and blobs: whether this origin is still to have their backend have it.

        What it has given up it does not owe.
        """
        keys = [self._owed_as(repository, digest) for repository, digest in asked]
        found = {}
        for task in await self._queue.find(filter(None, keys)) if any(keys) else ():
            if task.state in {State.WAITING, State.RUNNING}:
                found[task.key] = Owing(task.state is State.RUNNING, task.failures)
        return [found.get(key) for key in keys]

    def _owed_as(self, repository: str, digest: Digest) -> str:
        """The key of the task, if there may be one."""
        if digest not in self._owed or not self._backends.takes_pushes(repository):
            return ""
        matched = self._backends.source(repository)
        return "" if matched is None else _Debt(repository, matched).task(digest)

    async def missing(self) -> list[str]:
        """What keeps it from taking tasks on; nothing when all is well."""
        return await self._queue.missing()

    async def _debts(self, digest: Digest, repositories: Sequence[str]) -> list[_Debt]:
        matched = ((name, self._backends.target(name)) for name in dict.fromkeys(repositories))
        debts = [_Debt(name, match) for name, match in matched if match is not None]
        if not debts:
            return []
        entries = await in_thread(self._local.backing.entries, digest)
        backed = {entry.rpartition("|")[0] for entry in entries}
        return [debt for debt in debts if debt.matched.key not in backed]

    async def _add(self, digest: Digest, debts: Sequence[_Debt]) -> list[str]:
        """Pin the blob and note the tasks; the keys of those that there were not yet."""
        owners = self._ring.owners(digest)
        rank = owners.index(self._name) if self._name in owners else len(owners)
        owed = self._owed.setdefault(digest, {})
        new = []
        for debt in debts:
            key = debt.task(digest)
            before = owed.get(key)
            owed[key] = debt.repository
            payload = msgspec.json.encode(Owed(debt.repository, str(digest), rank)).decode()
            try:
                if await self._queue.add(key, payload, delay=rank * self._config.stagger):
                    new.append(key)
            except sqlite3.Error as error:
                # What was noted for an earlier push stays noted, and pins the copy.
                if before is None:
                    self._unpin(digest, [key])
                await self._take_back(digest, new)
                raise Unavailable(
                    f"{digest}: {self._name} cannot note that it is to be written to "
                    f"{debt.matched.backend.description}: {error}; nothing of it was kept",
                    detail={"digest": str(digest)},
                    retry_after=30,
                ) from error
        return new

    async def _take_back(self, digest: Digest, keys: Sequence[str]) -> None:
        try:
            await self._queue.withdraw(keys)
            left = {task.key for task in await self._queue.find(keys)}
        except sqlite3.Error as error:
            # The pin stays until the next start, where the queue says what there is.
            log.warning("a task is not taken back", digest=str(digest), error=str(error))
            return
        self._unpin(digest, set(keys) - left)

    def _unpin(self, digest: Digest, keys: Iterable[str]) -> None:
        owed = self._owed.get(digest, {})
        for key in keys:
            owed.pop(key, None)
        if not owed:
            self._owed.pop(digest, None)

    # -- for the queue ------------------------------------------------------------------------

    async def perform(self, task: Task) -> None:
        """Have the backend have the blob: look, write it when it is not there, look again."""
        owed = _owed(task)
        digest = Digest.parse(owed.digest)
        matched = self._backends.target(owed.repository)
        if matched is None:
            raise Unavailable(f"no backend is configured for {owed.repository} any more")
        debt = _Debt(owed.repository, matched)
        await self._await_turn(task, owed, matched)
        async with _lock(self._writing, digest):
            # A copy that is being kept this moment has its task already.
            async with _lock(self._taking, digest):
                whole = await in_thread(self._local.find, digest)
            name = BlobName(owed.repository, digest)
            deadline = Deadline.after(ATTEMPT_TIMEOUT)
            self._without_copy.discard(task.key)
            if whole is None:
                self._without_copy.add(task.key)
                if await matched.backend.stat(name, deadline=deadline) is None:
                    await self._hand_over(digest, owed.repository)
                return
            if not await matched.stored(name, whole.metainfo.size, deadline=deadline):
                await self._write(whole, name, matched)
            await in_thread(self._local.note_backed, digest, [debt.entry])

    async def _await_turn(self, task: Task, owed: Owed, matched: Matched) -> None:
        """Raise `Postponed` while another origin that has the blob is to write it."""
        digest = Digest.parse(owed.digest)
        if self._awaited[task.key]:
            return
        said = await self._owing_before(owed.repository, digest)
        turn = self._turns.judge(task.key, said, time.monotonic())
        if turn is Turn.LOOK:
            whole = await in_thread(self._local.find, digest)
            name, soon = BlobName(owed.repository, digest), Deadline.after(ATTEMPT_TIMEOUT)
            try:
                if whole is None or await matched.stored(name, whole.metainfo.size, deadline=soon):
                    return
            except BaseException:
                self._turns.forget(task.key)
                raise
            self._turns.answered(task.key, said)
        elif turn is Turn.MINE:
            # If this fails, too, the others' failures are forgiven.
            self._turns.forget(task.key)
            return
        # As long again as it waited already: a backlog is not asked after all the time.
        stagger = self._config.stagger
        age = task.age(time.time())
        wait = min(max(stagger, age), max(stagger, self._config.retry.cap))
        raise Postponed(f"{', '.join(said)} still owe it", wait)

    async def _owing_before(self, repository: str, digest: Digest) -> dict[str, Owing]:
        """Those before this origin in the blob's order that owe it; not those that are silent."""
        hosts = self._ring.before(self._name, digest)
        soon = Deadline.after(TURN_TIMEOUT)

        async def ask(host: str) -> Owing | None:
            try:
                return await self._ring.owing_at(host, repository, digest, deadline=soon)
            except CallFailed as error:
                log.info("write-back waits for nobody silent", host=host, error=error.detail)
                return None

        answers = await asyncio.gather(*map(ask, hosts))
        return {
            host: owing for host, owing in zip(hosts, answers, strict=True) if owing is not None
        }

    async def _write(self, whole: Whole, name: BlobName, matched: Matched) -> None:
        backend, size = matched.backend, whole.metainfo.size
        # The storage looks at no digest, and once it has the blob every copy may be evicted.
        if not await in_thread(self._local.is_sound, whole):
            raise Unavailable(f"{name.digest} is damaged on {self._name}; it is fetched anew")
        deadline = Deadline.after(ATTEMPT_TIMEOUT).with_transfer(size, SLOWEST)
        with self._local.in_use(name.digest):
            await backend.put(name, whole.blob.path, deadline=deadline)
        if not await matched.stored(name, size, deadline=Deadline.after(ATTEMPT_TIMEOUT)):
            raise Unreachable(
                "PUT",
                backend.description,
                f"{name.digest} of {name.repository} was written, and then the storage does not "
                f"have it with its {size} bytes",
            )
        metrics.WRITTEN_BYTES.inc(size)
        log.info(
            "written to the backend",
            digest=str(name.digest),
            repository=name.repository,
            size=size,
            storage=backend.description,
        )

    async def _hand_over(self, digest: Digest, repository: str) -> None:
        """Have those that have a copy write it; this origin's is gone, or was never made."""
        presence = await self._ring.stat_many(
            [digest], deadline=Deadline.after(ATTEMPT_TIMEOUT), keep=True, namespace=repository
        )
        holders = presence.copies.get(digest, frozenset())
        if holders:
            log.info("write-back is left to others", digest=str(digest), hosts=sorted(holders))
            return
        if presence.unasked:
            silent = "; ".join(f"{host}: {why.detail}" for host, why in presence.unasked.items())
            raise Unreachable(
                "PUT",
                f"/internal/blobs/{digest}",
                f"{digest} is not on {self._name}, and not all others could be asked: {silent}",
            )
        if await in_thread(self._local.find, digest) is not None:
            raise Unavailable(f"{digest} came to {self._name} while the others were asked")
        raise Hopeless(
            f"no origin has {digest}, and neither has the backend of {repository}: its push was "
            "broken off before it was acknowledged, or all copies are lost; push it again, or drop "
            "the task"
        )

    async def let_go(self, task: Task) -> None:
        """Unpin the copy, unless the blob was pushed again.

        While the task ran that added none: one that found no copy is then to be done once more.
        """
        owed = _owed(task)
        digest = Digest.parse(owed.digest)
        self._turns.forget(task.key)
        missed = task.key in self._without_copy and task.state is not State.DROPPED
        self._without_copy.discard(task.key)
        async with _lock(self._taking, digest):
            if await self._queue.find([task.key]):
                return
            if missed and await in_thread(self._local.find, digest) is not None:
                debts = await self._debts(digest, [owed.repository])
                if debts:
                    await self._add(digest, debts)
                    return
            self._unpin(digest, [task.key])


def _owed(task: Task) -> Owed:
    return msgspec.json.decode(task.payload, type=Owed)


def _lock(locks: WeakValueDictionary[Digest, asyncio.Lock], digest: Digest) -> asyncio.Lock:
    return locks.setdefault(digest, asyncio.Lock())
