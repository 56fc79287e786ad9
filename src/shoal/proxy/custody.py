# SPDX-License-Identifier: Apache-2.0
"""Blobs in the proxy's own keeping: acknowledged, and still to be delivered (write_back).

A blob is in custody when its bytes are durable here and the queue has a task for it; both outlive
the process. It stays until the write quorum of origins has it, or an operator drops the task. What
has bytes but no task was never acknowledged, or is delivered: the next start removes it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Protocol, Self
from weakref import WeakValueDictionary

import msgspec
import structlog

from shoal.model.digest import Digest
from shoal.model.errors import InsufficientStorage, Unavailable
from shoal.proxy.config import ProxyConfig
from shoal.proxy.ports import Origins
from shoal.queue.config import queue_file
from shoal.queue.durable import DurableQueue
from shoal.queue.tasks import Hopeless, Task
from shoal.store.blobs import BlobStore, StoredBlob
from shoal.store.full import is_full
from shoal.store.threads import in_thread
from shoal.web.bodies import Blob, FileBlob
from shoal.web.deadline import Deadline

ATTEMPT_TIMEOUT = 60.0
"""Seconds for one attempt of a delivery, besides the time for the blob's bytes."""

QUEUE = "delivery"

log = structlog.get_logger()


class Delivery(msgspec.Struct, frozen=True):
    """The payload of a task: what `shoal queue` shows of it."""

    repository: str
    size: int


class Custody(Protocol):
    """What the service needs of it."""

    async def take(self, file: Path, digest: Digest, repository: str) -> None:
        """Take over a verified file; on return it is durable and will be delivered.

        Raises `Unavailable`; nothing of it is kept then.
        """
        ...

    async def size(self, digest: Digest) -> int | None:
        """The size of a blob that is in custody."""
        ...

    async def open(self, digest: Digest) -> Blob | None:
        """A blob that is in custody, to be read."""
        ...

    async def delivered(self, digests: Collection[Digest], deadline: Deadline) -> dict[Digest, str]:
        """Hurry those that are in custody; those not delivered at the deadline, and why."""
        ...

    async def missing(self) -> list[str]:
        """What keeps it from taking blobs; nothing when all is well."""
        ...


class NoCustody:
    """The custody of a proxy that acknowledges nothing before the origins have it."""

    async def take(self, file: Path, digest: Digest, repository: str) -> None:  # noqa: ARG002
        raise Unavailable(f"{digest} cannot be kept here: no push rule is write_back")

    async def size(self, digest: Digest) -> int | None:  # noqa: ARG002
        return None

    async def open(self, digest: Digest) -> Blob | None:  # noqa: ARG002
        return None

    async def delivered(
        self,
        digests: Collection[Digest],  # noqa: ARG002
        deadline: Deadline,  # noqa: ARG002
    ) -> dict[Digest, str]:
        return {}

    async def missing(self) -> list[str]:
        return []


class DurableCustody:
    """Files in ``data_dir/custody``, and the queue that delivers them."""

    def __init__(self, store: BlobStore, origins: Origins, write_quorum: int) -> None:
        self._store = store
        self._origins = origins
        self._write_quorum = write_quorum
        self._locks: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._further: defaultdict[Digest, set[str]] = defaultdict(set)
        self._queue: DurableQueue

    @classmethod
    async def start(cls, config: ProxyConfig, origins: Origins) -> Self:
        """Open what an earlier process left, remove what nobody was promised, and deliver the rest.

        Raises `QueueUnusable` and `OSError`.
        """
        store = await in_thread(BlobStore, config.data_dir / "custody")
        custody = cls(store, origins, config.origins.write_quorum)
        path = queue_file(config.data_dir, QUEUE)
        custody._queue = await DurableQueue.open(QUEUE, path, config.delivery, custody)
        for task in await custody._queue.tasks():
            custody._note(task.key)
        await custody._remove_unpromised()
        custody._queue.start()
        return custody

    async def stop(self, grace: float) -> None:
        """Give deliveries under way `grace` seconds; the others go on at the next start."""
        await self._queue.stop(grace)

    # -- for the service ----------------------------------------------------------------------

    async def take(self, file: Path, digest: Digest, repository: str) -> None:
        async with self._lock(digest):
            stored = await self._held(digest)
            held = stored is not None
            try:
                if stored is None:
                    stored = await in_thread(self._store.adopt, file, digest, {}, durable=True)
                # A delivery that was given up begins anew; one that waits is left as it is.
                payload = msgspec.json.encode(Delivery(repository, stored.size)).decode()
                await self._queue.add(await self._key(digest, repository), payload)
            except (OSError, sqlite3.Error) as error:
                if not held:
                    await in_thread(self._store.delete, digest)
                unkept = InsufficientStorage if is_full(error) else Unavailable
                raise unkept(
                    f"{digest} cannot be kept on this proxy: {_why(error)}; nothing of it was "
                    "kept: push it again",
                    detail={"digest": str(digest)},
                ) from error

    async def size(self, digest: Digest) -> int | None:
        held = await self._held(digest)
        return None if held is None else held.size

    async def open(self, digest: Digest) -> Blob | None:
        if await self.size(digest) is None:
            return None
        try:
            return await FileBlob.open(self._store.path(digest))
        except FileNotFoundError:
            return None  # delivered this very moment: the origins have it

    async def delivered(self, digests: Collection[Digest], deadline: Deadline) -> dict[Digest, str]:
        keys = {key for digest in digests for key in self._keys(digest)}
        late = await self._queue.settled(keys, deadline)
        now = time.time()
        return {_digest(task.key): _standing(task, now) for task in late}

    async def missing(self) -> list[str]:
        return await self._queue.missing()

    # -- for the queue ------------------------------------------------------------------------

    async def perform(self, task: Task) -> None:
        """Deliver a blob to the write quorum."""
        digest, repository = _digest(task.key), _repository(task)
        stored = await in_thread(self._store.stat, digest)
        deadline = Deadline.after(ATTEMPT_TIMEOUT)
        if stored is None:
            presence = await self._origins.stat_many(
                [digest], deadline=deadline, keep=True, namespace=repository
            )
            if len(presence.copies.get(digest, ())) < self._write_quorum:
                raise Hopeless(
                    f"the file {self._store.path(digest)} is gone, and fewer origins than the "
                    "write quorum have the blob: push it again"
                )
            return
        deadline = deadline.with_transfer(stored.size)
        await self._origins.upload(
            digest, stored.path, stored.size, deadline=deadline, namespace=repository
        )
        log.info(
            "delivered",
            digest=str(digest),
            repository=repository,
            size=stored.size,
            failures=task.failures,
            after_s=round(task.age(time.time()), 3),
        )

    async def let_go(self, task: Task) -> None:
        """Remove the file, unless it was pushed again since the task ended."""
        digest = _digest(task.key)
        async with self._lock(digest):
            if task.key != str(digest) and not await self._queue.find([task.key]):
                self._further[digest].discard(task.key)
                if not self._further[digest]:
                    del self._further[digest]
            if not await self._promised(digest):
                await in_thread(self._store.delete, digest)

    async def _held(self, digest: Digest) -> StoredBlob | None:
        stored = await in_thread(self._store.stat, digest)
        return stored if stored is not None and await self._promised(digest) else None

    async def _promised(self, digest: Digest) -> bool:
        return bool(await self._queue.find(self._keys(digest)))

    async def _key(self, digest: Digest, repository: str) -> str:
        """The key for the blob's delivery to this repository.

        The digest, unless it is that of a delivery to another one: each may have a backend of its
        own, which the origins are told of by the delivery.
        """
        [*same] = await self._queue.find([str(digest)])
        if not same or _repository(same[0]) == repository:
            return str(digest)
        key = f"{digest} {repository}"
        self._note(key)
        return key

    def _note(self, key: str) -> None:
        digest = _digest(key)
        if key != str(digest):
            self._further[digest].add(key)

    def _keys(self, digest: Digest) -> list[str]:
        """The keys of all its deliveries."""
        return [str(digest), *self._further.get(digest, ())]

    async def _remove_unpromised(self) -> None:
        for digest in await in_thread(lambda: list(self._store.digests())):
            if not await self._promised(digest):
                log.info("removing a blob that nobody waits for", digest=str(digest))
                await in_thread(self._store.delete, digest)

    def _lock(self, digest: Digest) -> asyncio.Lock:
        """What keeps taking a blob and letting it go apart."""
        return self._locks.setdefault(digest, asyncio.Lock())


def _why(error: OSError | sqlite3.Error) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def _digest(key: str) -> Digest:
    return Digest.parse(key.partition(" ")[0])


def _repository(task: Task) -> str:
    return msgspec.json.decode(task.payload, type=Delivery).repository


def _standing(task: Task, now: float) -> str:
    failed = f", tried {task.failures} times: {task.error}" if task.failures else ""
    return f"{task.state} for {task.age(now):.0f} s{failed}"
