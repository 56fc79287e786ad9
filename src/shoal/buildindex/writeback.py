# SPDX-License-Identifier: Apache-2.0
"""Tags and links on their way to the backends: a durable queue that follows the records.

The change log of the records says what is to be written, and how far it was taken into the queue is
noted durably; so nothing that was acknowledged is forgotten, whenever the process dies. A task only
names a record: what is written is what the record says when it is done, and what changes meanwhile
has it done once more. Every build-index follows the log, also what its neighbours wrote, later and
only where it is not done yet: so another one takes over from one that is gone.

Who reads the backend sees no name before what it names: a blob's link comes after the blob, which
an origin writes; a manifest's link after the manifest and the links of its parts; a tag after that.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec
import structlog

from shoal.backend.base import BlobName, LinkName, Name, TagName
from shoal.backend.config import BackendConfig
from shoal.backend.matching import Backends, Matched
from shoal.buildindex.config import WritebackConfig
from shoal.buildindex.records import MAX_BATCH, Kind, Record
from shoal.buildindex.storage import read_pointer
from shoal.buildindex.store import Store
from shoal.model.digest import Digest
from shoal.model.errors import ApiError
from shoal.queue.config import queue_file
from shoal.queue.durable import DurableQueue
from shoal.queue.tasks import Hopeless, Task
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound

QUEUE = "backend"
"""The name of the queue."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the log for what neighbours wrote, and after a failure."""

_CURSOR = "(backends)"
"""The name under which it is noted how far the log was followed: that of no neighbour."""

log = structlog.get_logger()


class _Write(msgspec.Struct, frozen=True):
    """The payload of a task."""

    kind: Kind
    repository: str
    name: str
    version: str
    """That of the record that made the task: another one has it done once more."""

    own: bool = True
    """The record was written by this build-index."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a record is kept in its backend."""

    name: Name
    matched: Matched


class BackendWrites:
    """What is done with a task of the queue."""

    def __init__(self, store: Store, backends: Backends, *, timeout: float) -> None:
        """`timeout`: seconds for one question to a backend, or one write."""
        self._store = store
        self._backends = backends
        self._timeout = timeout

    async def perform(self, task: Task) -> None:
        """Have the backend hold what the record says now."""
        write = msgspec.json.decode(task.payload, type=_Write)
        name = (write.kind, write.repository, write.name)
        recorded, wanted = await self._store.read(lambda view: view.stored_value(*name))
        if not recorded:
            log.warning("no record says what a backend should hold", key=task.key)
            return
        place = self._place(write)
        if wanted is None:
            await place.matched.backend.delete(place.name, deadline=self._deadline())
        elif (write.own and not task.failures) or not await self._has(place, wanted):
            await self._check_content(place, Digest.parse(wanted))
            await place.matched.backend.put(place.name, wanted.encode(), deadline=self._deadline())

    async def let_go(self, task: Task) -> None:
        """Nothing is left of a task that is done or dropped."""

    async def _check_content(self, place: _Place, digest: Digest) -> None:
        """Raise `NotFound` unless the backend has what comes before a tag or link to a digest."""
        for name, matched in await self._content(place, digest):
            for storage in matched.places or (matched.backend,):
                if await storage.stat(name, deadline=self._deadline()) is None:
                    what = "the link of " if isinstance(name, LinkName) else ""
                    raise NotFound(
                        "PUT",
                        storage.description,
                        f"not written before {what}{name.digest} is there, which it needs",
                    )

    async def _content(
        self, place: _Place, digest: Digest
    ) -> list[tuple[BlobName | LinkName, Matched]]:
        """What comes before a name, each with where it is stored."""
        repository = place.name.repository
        blobs = self._backends.for_blobs(repository)
        if blobs is None:
            return []  # its blobs stay on the origins, so nobody else can use its tags
        is_manifest, parts = await self._store.read(
            lambda view: (
                view.has_manifest(repository, str(digest)),
                view.parts(repository, str(digest)),
            )
        )
        if isinstance(place.name, TagName) and is_manifest:
            return [(LinkName(repository, digest, "manifest"), place.matched)]
        content: list[tuple[BlobName | LinkName, Matched]] = [(BlobName(repository, digest), blobs)]
        if isinstance(place.name, LinkName) and place.name.kind == "manifest":
            content += [
                (LinkName(repository, Digest.parse(part), kind), place.matched)
                for part, kind in parts
            ]
        return content

    def _place(self, write: _Write) -> _Place:
        matched = self._backends.for_tags(write.repository)
        if matched is None or matched.upstream:
            raise Hopeless(
                f"no backend of the config holds the tags of {write.repository}: give it one and "
                "retry this task, or drop it"
            )
        return _Place(_name(write), matched)

    async def _has(self, place: _Place, wanted: str) -> bool:
        if isinstance(place.name, TagName):
            held = await read_pointer(place.matched.backend, place.name, self._deadline())
            return held == wanted and not place.matched.places
        return await place.matched.stored(place.name, len(wanted), deadline=self._deadline())

    def _deadline(self) -> Deadline:
        return Deadline.after(self._timeout)


class Writeback:
    """Follows the records, and has the queue write them."""

    def __init__(
        self,
        store: Store,
        backends: Backends,
        queue: DurableQueue,
        configured: Sequence[BackendConfig],
        *,
        stagger: float,
    ) -> None:
        """`stagger`: seconds after which what a neighbour took is looked after here, too."""
        self._store = store
        self._backends = backends
        self._queue = queue
        self._stagger = stagger
        # With another config all records are looked at anew.
        self._config_id = sha256(repr(configured).encode()).hexdigest()[:16]
        self._changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        data_dir: Path,
        store: Store,
        backends: Backends,
        configured: Sequence[BackendConfig],
        config: WritebackConfig,
    ) -> Writeback:
        """Open the queue and begin to work; raises `QueueUnusable`, `OSError`."""
        work = BackendWrites(store, backends, timeout=config.timeout)
        queue = await DurableQueue.open(QUEUE, queue_file(data_dir, QUEUE), config, work)
        writeback = cls(store, backends, queue, configured, stagger=config.stagger)
        queue.start()
        writeback._following = asyncio.create_task(writeback._follow(), name="follow the records")
        return writeback

    def wake(self) -> None:
        """Records were written."""
        self._changed.set()

    async def missing(self) -> list[str]:
        """What keeps the queue from taking tasks on."""
        return await self._queue.missing()

    async def oldest_deletion(self) -> int | None:
        """Wall time (ms) of the oldest deletion that is still to reach a backend; None: all have.

        Forgotten before, it would be undone: the name would be found in the backend again.
        """
        oldest: list[int] = []
        # The log first: what moves on to the queue meanwhile is found there.
        after, more = await self._taken() or 0, True
        while more:
            page = await self._store.read(lambda view: view.changes(after, MAX_BATCH))  # noqa: B023
            oldest += [
                record.version.wall_ms
                for record in page.records
                if record.value is None and self._is_kept(record)
            ]
            after, more = page.next, page.more
        tasks = [msgspec.json.decode(task.payload, type=_Write) for task in await self.tasks()]
        for start in range(0, len(tasks), MAX_BATCH):
            names = [(one.kind, one.repository, one.name) for one in tasks[start:][:MAX_BATCH]]
            held = await self._store.read(lambda view: [view.version(*name) for name in names])  # noqa: B023 -- it is called at once
            oldest += [record[0].wall_ms for record in held if record is not None and record[1]]
        return min(oldest, default=None)

    async def tasks(self) -> list[Task]:
        """What is still to be written, and what was given up."""
        return await self._queue.tasks()

    async def stop(self, grace: float) -> None:
        """Take what was written into the queue, and give tasks that run `grace` seconds."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._queue.stop(grace)

    async def _follow(self) -> None:
        while True:
            self._changed.clear()
            try:
                while await self._take_page():
                    pass
            except (sqlite3.Error, ApiError) as error:
                log.error("tags cannot be queued for their backends", error=str(error))  # noqa: TRY400
                await asyncio.sleep(LOOK_INTERVAL)
            except Exception:  # a defect; what was acknowledged must not wait for ever
                log.exception("defect in the queue of the backends")
                await asyncio.sleep(LOOK_INTERVAL)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL):
                    await self._changed.wait()

    async def _taken(self) -> int | None:
        """The sequence number up to which the log was followed; None: it never was."""
        known = await self._store.read(lambda view: view.cursor(_CURSOR))
        if known is None:
            return None
        return known[1] if known[0] == self._config_id else 0

    async def _take_page(self) -> bool:
        """Take some records into the queue; whether there are more."""
        known = await self._taken()
        after = known or 0
        page = await self._store.read(lambda view: view.changes(after, MAX_BATCH))
        own: dict[str, str] = {}
        others: dict[str, str] = {}
        for record in page.records:
            if self._is_kept(record):
                is_own = record.version.node == page.node
                kept = own if is_own else others
                kept[_key(record)] = _payload(record, own=is_own)
                for tag in await self._hidden(record):
                    kept[_key(tag)] = _payload(tag, own=is_own)
        if own:
            await self._queue.add_again(own)
        if others:
            await self._queue.add_again(others, delay=self._stagger)
        if known is None or page.records:
            await self._store.set_cursor(_CURSOR, self._config_id, page.next)
        return page.more

    async def _hidden(self, record: Record) -> list[Record]:
        """The tags that a deletion takes away without a record of their own.

        Another build-index pointed them to the manifest while it was deleted.
        """
        if record.kind != "manifest" or record.value is not None:
            return []
        tags = await self._store.read(lambda view: view.pointing(record.repository, record.name))
        return [msgspec.structs.replace(tag, version=record.version) for tag in tags]

    def _is_kept(self, record: Record) -> bool:
        """Whether a record belongs into a backend, and does not come from there."""
        if record.version.adopted and record.value is not None:
            return False
        matched = self._backends.for_tags(record.repository)
        return matched is not None and not matched.upstream and not matched.backend.read_only


def _key(record: Record) -> str:
    joint = ":" if record.kind == "tag" else "@"
    text = f"{record.repository}{joint}{record.name}"
    return text if record.kind != "blob" else f"blob {text}"


def _payload(record: Record, *, own: bool) -> str:
    version = record.version
    write = _Write(
        record.kind,
        record.repository,
        record.name,
        f"{version.wall_ms}.{version.counter}.{version.node}",
        own,
    )
    return msgspec.json.encode(write).decode()


def _name(write: _Write) -> Name:
    if write.kind == "tag":
        return TagName(write.repository, write.name)
    return LinkName(write.repository, Digest.parse(write.name), write.kind)
