# SPDX-License-Identifier: Apache-2.0
"""A durable queue: work that was taken on gets done, over failures, kills and restarts.

A task leaves the queue when its work succeeded, or when an operator drops it, and in no other way.
Work may be done twice (a process can die between its end and the note of it), so it must be of the
kind that does no harm then.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, Self, TypeVar

import structlog

from shoal.queue import metrics
from shoal.queue.commits import Commits
from shoal.queue.config import QueueConfig
from shoal.queue.database import QueueDatabase
from shoal.queue.tasks import Hopeless, Postponed, State, Task, after_failure, after_postponement
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the file for what operators changed there, at most."""

EXPEDITE_INTERVAL = 1.0
"""Seconds after which tasks that somebody waits for are tried again, whatever their backoff."""

T = TypeVar("T")

log = structlog.get_logger()


class Work(Protocol):
    """What is done with a task."""

    async def perform(self, task: Task) -> None:
        """Do it. Any exception means another attempt later; `Hopeless` means none.

        `Postponed` means another attempt later, too, and is no failure.
        """
        ...

    async def let_go(self, task: Task) -> None:
        """Clean up after a task that is not in the queue any more; its key may be again."""
        ...


class DurableQueue:
    """One queue at work. Made by `open`, at work from `start` to `stop`."""

    def __init__(
        self,
        name: str,
        database: QueueDatabase,
        config: QueueConfig,
        work: Work,
        *,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self._commits = Commits(database)
        self._database = database
        self._config = config
        self._work = work
        self._clock = clock
        self._rng = rng or random.Random()
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._watched: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.Task[None] | None = None
        self._show_at = 0.0
        self._seen = clock()

    @classmethod
    async def open(cls, name: str, path: Path, config: QueueConfig, work: Work) -> Self:
        """Open or make the queue in this file; raises `QueueUnusable`, `OSError`."""
        latest = time.time() + config.retry.cap
        database = await in_thread(lambda: QueueDatabase.open_to_work(path, latest_due=latest))
        return cls(name, database, config, work)

    def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.create_task(self._serve(), name=f"queue {self.name}")

    async def stop(self, grace: float) -> None:
        """Take no more tasks, give those that run `grace` seconds, and close the file.

        What is not done by then waits in the file for the next start.
        """
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._commits.close()

    # -- for those who have work --------------------------------------------------------------

    async def add(self, key: str, payload: str, *, delay: float = 0.0) -> bool:
        """Take a task on; it is durable when this returns, and it is not there if this raises.

        It is due `delay` seconds from now. One that waits or runs under this key already is left as
        it is; returns whether there was none. Raises `sqlite3.Error`, as for a full disk.
        """
        now = self._clock()
        due = now + delay
        added = await self._commits.write(lambda: self._database.add(key, payload, now, due))
        self._wake.set()
        return added

    async def add_again(self, tasks: Mapping[str, str], *, delay: float = 0.0) -> None:
        """Take tasks on, payload by key, all or none, durably; those that run are not forgotten.

        What runs under a key is done once more when it ends, if this payload is another one: it may
        have begun before what is to be done changed. Raises `sqlite3.Error`.
        """
        now = self._clock()

        def add() -> None:
            for key, payload in tasks.items():
                self._database.add_again(key, payload, now, now + delay)

        await self._commits.write(add)
        self._wake.set()

    async def withdraw(self, keys: Collection[str]) -> None:
        """Take back tasks that nobody was promised, as far as none has been tried."""
        await self._commits.write(partial(self._database.withdraw, list(keys)))

    async def tasks(self) -> list[Task]:
        """All tasks: waiting, running and dead; the oldest first."""
        states = (State.WAITING, State.RUNNING, State.DEAD)
        return await self._commits.read(partial(self._database.tasks, states, -1))

    async def find(self, keys: Iterable[str]) -> list[Task]:
        """Those of the tasks that are in the queue: waiting, running or dead."""
        return await self._commits.read(partial(self._database.find, list(keys)))

    async def settled(self, keys: Collection[str], deadline: Deadline) -> list[Task]:
        """Hurry these tasks and wait until they are done; those that are not, at the deadline.

        Returns before the deadline when all that are left are dead: each of those got a try.
        """
        with self._watching(keys) as changed:
            tried = set[str]()
            while left := await self.find(keys):
                if all(task.state is State.DEAD and task.key in tried for task in left):
                    return left
                remaining = deadline.remaining()
                if not remaining:
                    return left
                tried.update(task.key for task in left)
                await self._expedite([task.key for task in left])
                changed.clear()
                try:
                    async with asyncio.timeout(min(remaining, EXPEDITE_INTERVAL)):
                        await changed.wait()
                except TimeoutError:
                    continue
        return []

    async def missing(self) -> list[str]:
        """What keeps the queue from taking tasks on; nothing when all is well."""
        if self._loop is None or self._loop.done():
            return [f"the queue {self.name} is not at work"]
        try:
            await self._commits.write(self._database.probe)
        except sqlite3.Error as error:
            return [f"the queue {self._database.path} cannot be written: {error}"]
        return []

    @contextmanager
    def _watching(self, keys: Collection[str]) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        for key in keys:
            self._watched[key].add(changed)
        try:
            yield changed
        finally:
            for key in keys:
                watchers = self._watched[key]
                watchers.discard(changed)
                if not watchers:
                    del self._watched[key]

    async def _expedite(self, keys: list[str]) -> None:
        try:
            await self._commits.write(partial(self._database.expedite, keys))
        except sqlite3.Error as error:
            # They keep their turn, and the caller its deadline.
            log.warning("queue cannot hurry", queue=self.name, error=str(error))
        self._wake.set()

    # -- at work ------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._mind_the_clock()
                await self._start_due()
                await self._remove_dropped()
                pause = await self._until_next()
            except sqlite3.Error as error:
                log.error("queue cannot be worked on", queue=self.name, error=str(error))  # noqa: TRY400
                pause = LOOK_INTERVAL
            except Exception:  # a defect; what waits must not wait for ever
                log.exception("defect in the queue", queue=self.name)
                pause = LOOK_INTERVAL
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _mind_the_clock(self) -> None:
        """When it was set back, what waits would wait for so much longer."""
        now = self._clock()
        if now < self._seen:
            latest = now + self._config.retry.cap
            await self._commits.write(partial(self._database.bring_forward, latest))
        self._seen = now

    async def _start_due(self) -> None:
        now = self._clock()
        free = self._config.concurrency - len(self._running)
        if free <= 0 or not await self._commits.read(partial(self._database.due, now)):
            return
        for task in await self._commits.write(partial(self._database.claim, now, free)):
            running = asyncio.create_task(self._attempt(task), name=f"{self.name} {task.key}")
            self._running.add(running)
            running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._wake.set()
        if not running.cancelled() and (error := running.exception()) is not None:
            log.error("defect in a queue's work", queue=self.name, exc_info=error)

    async def _remove_dropped(self) -> None:
        if not await self._commits.read(self._database.any_dropped):
            return
        for task in await self._commits.write(self._database.remove_dropped):
            log.warning("task dropped by an operator", **self._about(task))
            metrics.DROPPED.labels(self.name).inc()
            await self._let_go(task)

    async def _until_next(self) -> float:
        now = self._clock()
        if time.monotonic() >= self._show_at:
            metrics.show(self.name, await self._commits.read(self._database.counts), now)
            self._show_at = time.monotonic() + LOOK_INTERVAL
        due = await self._commits.read(self._database.next_due)
        if due is None or len(self._running) >= self._config.concurrency:
            return LOOK_INTERVAL
        return min(max(0.0, due - now), LOOK_INTERVAL)

    async def _attempt(self, task: Task) -> None:
        try:
            await self._work.perform(task)
        except Postponed as postponed:
            after = after_postponement(task, postponed, now=self._clock())
            await self._note(lambda: self._database.put_back(after), task)
            metrics.ATTEMPTS.labels(self.name, "postponed").inc()
            log.debug("task postponed", **self._about(task), wait_s=postponed.wait, why=after.error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the task is not lost
            await self._failed(task, error)
        else:
            gone = await self._note(lambda: self._database.done(task), task)
            metrics.ATTEMPTS.labels(self.name, "done").inc()
            metrics.SECONDS.labels(self.name).observe(task.age(self._clock()))
            log.debug("task done", **self._about(task))
            if gone:
                await self._let_go(task)

    async def _failed(self, task: Task, error: Exception) -> None:
        now = self._clock()
        after = after_failure(
            task,
            str(error) or type(error).__name__,
            now=now,
            policy=self._config.retry,
            dead_after=self._config.dead_after,
            rng=self._rng,
            after=getattr(error, "retry_after", None),
            hopeless=isinstance(error, Hopeless),
        )
        await self._note(lambda: self._database.put_back(after), task)
        if after.state is State.DEAD:
            metrics.ATTEMPTS.labels(self.name, "dead").inc()
            log.error(
                "task given up; see `shoal queue list`",
                **self._about(after),
                age_s=round(after.age(now)),
                error=after.error,
            )
            self._tell(task)
            return
        metrics.ATTEMPTS.labels(self.name, "failed").inc()
        wait = round(after.due - now, 3)
        log.warning("task failed, will retry", **self._about(after), wait_s=wait, error=after.error)

    async def _note(self, step: Callable[[], T], task: Task) -> T:
        """Write down how an attempt ended, however long the disk takes none."""
        while True:
            try:
                return await self._commits.write(step)
            except sqlite3.Error as error:
                log.warning("queue cannot be written", **self._about(task), error=str(error))
                await asyncio.sleep(LOOK_INTERVAL)

    async def _let_go(self, task: Task) -> None:
        try:
            await self._work.let_go(task)
        except Exception as error:  # noqa: BLE001 - the work is done; a leftover is all that stays
            log.warning("cannot clean up", **self._about(task), error=str(error))
        self._tell(task)

    def _tell(self, task: Task) -> None:
        for changed in self._watched.get(task.key, ()):
            changed.set()

    def _about(self, task: Task) -> dict[str, object]:
        return {"queue": self.name, "key": task.key, "failures": task.failures}
