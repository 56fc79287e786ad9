# SPDX-License-Identifier: Apache-2.0
"""Build-indexes keep each other up to date.

A write goes to all neighbours at once, and a push waits for them for a bounded time. What does not
arrive that way is pulled: each build-index asks its neighbours for their changes at its start,
before it serves, every few seconds, and when it is about to say that something is not there.
Records carry versions and the newest wins, so that order, repetition and detours do not matter.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from shoal.buildindex import writes
from shoal.buildindex.records import MAX_BATCH, Changes, Record, batches
from shoal.buildindex.store import Store
from shoal.model.errors import ApiError
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Unreachable

SUSPECT_TIMEOUT = 0.25
"""Seconds that a push waits for a neighbour that did not answer the last time."""

PAGE_TIMEOUT = 10.0
"""Seconds for one page of a neighbour's changes."""

SETTLE = 0.25
"""Seconds after which a build-index that was started asks its neighbours again."""

CLOCK_SKEW_MS = 60_000
"""A neighbour whose clock is ahead by more than this is worth a warning."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Neighbour:
    host: str
    silent: bool = False
    """It did not answer the last time."""

    caught_up: bool = False
    """All it had was taken at least once."""

    is_self: bool = False

    back: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it answers again: it may have taken writes meanwhile."""

    pulling: asyncio.Lock = field(default_factory=asyncio.Lock)


class Neighbours:
    """The other build-indexes, as one of them sees them."""

    def __init__(
        self,
        http: HttpClient,
        store: Store,
        hosts: Sequence[str],
        *,
        timeout: float,
        interval: float,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`timeout`: seconds that a push waits; `interval`: seconds between two questions."""
        self._http = http
        self._store = store
        self._timeout = timeout
        self._interval = interval
        self._wall_ms = wall_ms
        self._all = [_Neighbour(host) for host in hosts]
        self._followers: list[asyncio.Task[None]] = []
        self._spreading: set[asyncio.Task[None]] = set()
        self._asking: asyncio.Task[None] | None = None
        self._asking_next: asyncio.Task[None] | None = None

    def silent(self) -> list[str]:
        """The neighbours that did not answer the last time."""
        return [neighbour.host for neighbour in self._others() if neighbour.silent]

    def behind(self) -> list[str]:
        """The neighbours that answer, and whose changes have not all been taken yet."""
        return [
            neighbour.host
            for neighbour in self._others()
            if not neighbour.caught_up and not neighbour.silent
        ]

    def _others(self) -> list[_Neighbour]:
        return [neighbour for neighbour in self._all if not neighbour.is_self]

    async def spread(self, records: Sequence[Record]) -> None:
        """Give records to all neighbours; return when they have them, or their time is over.

        Never fails: a neighbour that cannot be reached pulls the records when it is back.
        """
        others = self._others()
        if not records or not others:
            return
        bodies = list(batches(records))
        tasks = [
            asyncio.create_task(self._give(neighbour, bodies), name=f"spread to {neighbour.host}")
            for neighbour in others
        ]
        self._spreading.update(tasks)
        for task in tasks:
            task.add_done_callback(self._spreading.discard)
        await asyncio.wait(tasks)

    async def _give(self, neighbour: _Neighbour, bodies: Sequence[bytes]) -> None:
        deadline = Deadline.after(self._patience(neighbour))
        try:
            for body in bodies:
                await self._http.call(
                    "PUT",
                    self._http.url(neighbour.host, "/internal/records"),
                    deadline=deadline,
                    headers={"Content-Type": "application/json"},
                    data=body,
                )
        except CallFailed as error:
            self._heard(neighbour, error)
        else:
            self._heard(neighbour, None)

    def _patience(self, neighbour: _Neighbour) -> float:
        return min(self._timeout, SUSPECT_TIMEOUT) if neighbour.silent else self._timeout

    async def accept(self, records: Sequence[Record]) -> None:
        """Keep a neighbour's records that are newer than the own ones, durably.

        Raises `BadRequest` for a malformed record (nothing is kept), `Unavailable` for a full disk.
        """
        if not records:
            return
        ahead = max(record.version.wall_ms for record in records) - self._wall_ms()
        if ahead > CLOCK_SKEW_MS:
            log.warning("the clock of a neighbour is ahead: is time synchronised?", ahead_ms=ahead)
        kept = await self._store.write(partial(writes.take, records=records))
        if kept.result:
            log.debug("records of neighbours", given=len(records), newer=kept.result)

    def _heard(self, neighbour: _Neighbour, error: Exception | None) -> None:
        if error is not None and not neighbour.silent:
            log.warning("neighbour does not answer", neighbour=neighbour.host, error=str(error))
        elif error is None and neighbour.silent:
            log.info("neighbour answers again", neighbour=neighbour.host)
            neighbour.back.set()
        neighbour.silent = error is not None

    async def catch_up(self, timeout: float) -> None:
        """Take the changes of every neighbour that answers, within `timeout` seconds."""
        if not self._all:
            return
        pulls = [asyncio.create_task(self._pull(neighbour)) for neighbour in self._all]
        _, late = await asyncio.wait(pulls, timeout=timeout)
        for pull in late:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)
        if self.silent() or self.behind():
            log.warning(
                "serving without all neighbours", silent=self.silent(), behind=self.behind()
            )

    async def refresh(self) -> bool:
        """Take the changes of the neighbours that answer in time; False: there are none to ask.

        What a neighbour had when this was called is here on return. Callers share questions: those
        that come while one is under way wait for the next one.
        """
        if not self._others():
            return False
        if self._asking_next is None:
            self._asking_next = asyncio.create_task(self._ask_all(self._asking), name="refresh")
        await asyncio.shield(self._asking_next)
        return True

    async def _ask_all(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        self._asking, self._asking_next = self._asking_next, None
        await asyncio.gather(*map(self._ask_soon, self._others()))

    async def _ask_soon(self, neighbour: _Neighbour) -> None:
        try:
            async with asyncio.timeout(self._patience(neighbour)):
                await self._pull(neighbour)
        except TimeoutError:
            url = self._http.url(neighbour.host, "/internal/changes")
            self._heard(neighbour, Unreachable("GET", url, "its changes did not come in time"))

    def follow(self) -> None:
        """From now on ask every neighbour for its changes at intervals, until `stop`."""
        self._followers = [
            asyncio.create_task(self._follow(neighbour), name=f"follow {neighbour.host}")
            for neighbour in self._others()
        ]

    async def stop(self) -> None:
        """End the following, and wait for the records that are on their way."""
        asking = [task for task in (self._asking, self._asking_next) if task is not None]
        for task in (*self._followers, *asking):
            task.cancel()
        await asyncio.gather(*self._followers, *asking, *self._spreading, return_exceptions=True)

    async def _follow(self, neighbour: _Neighbour) -> None:
        # Soon after the start for once: a write that came after catching up, and before this
        # build-index could be reached, is here then.
        wait = min(SETTLE, self._interval)
        while not neighbour.is_self:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await neighbour.back.wait()
            await self._pull(neighbour)
            neighbour.back.clear()
            wait = self._interval * random.uniform(0.8, 1.2)

    async def _pull(self, neighbour: _Neighbour) -> None:
        try:
            async with neighbour.pulling:
                await self._take_changes(neighbour)
        except CallFailed as error:
            self._heard(neighbour, error)
        except ApiError as error:
            log.warning("cannot keep changes", neighbour=neighbour.host, error=error.message)
        else:
            self._heard(neighbour, None)

    async def _take_changes(self, neighbour: _Neighbour) -> None:
        known = await self._store.read(lambda view: view.cursor(neighbour.host))
        node, after = known or ("", 0)
        while True:
            changes = await self._ask(neighbour, after)
            if changes.node == self._store.node:
                neighbour.is_self = True
                log.info(
                    "a neighbour has the id of this build-index: it is this one itself, or runs on "
                    "a copy of its data directory",
                    neighbour=neighbour.host,
                )
                return
            if changes.node != node:
                node = changes.node
                if after > 0:  # another database than the last time: its numbers begin anew
                    after = 0
                    continue
            await self.accept(changes.records)
            if (node, changes.next) != known:
                known = (node, changes.next)
                await self._store.set_cursor(neighbour.host, *known)
            after = changes.next
            if not changes.more:
                neighbour.caught_up = True
                return
            neighbour.silent = False

    async def _ask(self, neighbour: _Neighbour, after: int) -> Changes:
        answer = await self._http.call(
            "GET",
            self._http.url(neighbour.host, "/internal/changes"),
            deadline=Deadline.after(PAGE_TIMEOUT),
            params={"after": str(after), "limit": str(MAX_BATCH)},
        )
        changes = answer.decode(Changes)
        if changes.more and not changes.records:
            raise Unreachable("GET", answer.url, "promised more changes and gave none")
        return changes
