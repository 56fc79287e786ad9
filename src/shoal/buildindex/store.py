# SPDX-License-Identifier: Apache-2.0
"""The asynchronous edge of the database.

Writes that wait at the same time become one transaction in one thread; reads have a thread and a
connection of their own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from shoal.buildindex.database import Database, Operation, Outcome, Transaction
from shoal.buildindex.garbage import Contents
from shoal.buildindex.records import Record
from shoal.buildindex.view import View
from shoal.model.errors import Unavailable

T = TypeVar("T")

MAX_WAITING = 10_000
"""Writes that may wait for the disk before more of them are refused."""


class Written(NamedTuple, Generic[T]):
    """A write that was done."""

    result: T
    records: list[Record]
    """What it changed."""


class Store:
    """A `Database` for the event loop. Every method raises `Unavailable` when the disk fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="records-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="records-read")
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="records-collect")
        self._waiting: list[tuple[Operation, asyncio.Future[Outcome]]] = []
        self._committing: asyncio.Task[None] | None = None

    @property
    def node(self) -> str:
        """The id of this build-index."""
        return self._database.node

    async def write(self, operation: Callable[[Transaction], T]) -> Written[T]:
        """Do an operation and sync it; raises what it raises, and then nothing of it is kept."""
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable(
                f"{MAX_WAITING} writes are waiting for {self._database.path}; try again"
            )
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit(), name="records-commit")
        outcome = await done
        if outcome.refused is not None:
            raise outcome.refused
        return Written(outcome.result, list(outcome.written))

    async def _commit(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            operations = [operation for operation, _ in batch]
            try:
                outcomes = await self._in_writer(partial(self._database.run, operations))
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                outcomes = [Outcome(refused=error)] * len(batch)
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if not done.done():
                    done.set_result(outcome)
        self._committing = None

    async def read(self, look: Callable[[View], T]) -> T:
        """Look at what was committed. A look is short: others wait for it."""
        return await self._reading(self._reader, lambda: look(self._database.view))

    async def contents(self, repository: str) -> Contents:
        """All live records of a repository, of one moment; nobody waits for this."""

        def look() -> Contents:
            with self._database.snapshot() as view:
                return view.contents(repository)

        return await self._reading(self._collector, look)

    async def purge(self, before_ms: int) -> int:
        """As `Database.purge`."""
        return await self._in_writer(lambda: self._database.purge(before_ms))

    async def set_cursor(self, neighbour: str, node: str, seq: int) -> None:
        """As `Database.set_cursor`."""
        await self._in_writer(lambda: self._database.set_cursor(neighbour, node, seq))

    async def probe(self) -> None:
        """As `Database.probe`."""
        await self._in_writer(self._database.probe)

    async def close(self) -> None:
        """Finish what is waiting, then close the database."""
        if self._committing is not None:
            await self._committing
        for executor in (self._writer, self._reader, self._collector):
            executor.shutdown()
        self._database.close()

    async def _in_writer(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._writer, work)
        except sqlite3.Error as error:
            raise Unavailable(
                f"could not write to {self._database.path}: {error}; nothing was changed"
            ) from error

    async def _reading(self, executor: Executor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        except sqlite3.Error as error:
            raise Unavailable(f"could not read {self._database.path}: {error}") from error
