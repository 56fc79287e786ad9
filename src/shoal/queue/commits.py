# SPDX-License-Identifier: Apache-2.0
"""The asynchronous edge of a queue's file: one thread, and one sync for all that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from shoal.queue.database import QueueDatabase

T = TypeVar("T")


class Commits:
    """Runs steps on a database; writes that wait at the same time become one transaction."""

    def __init__(self, database: QueueDatabase) -> None:
        self.database = database
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="queue")
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._committing: asyncio.Task[None] | None = None

    async def write(self, step: Callable[[], T]) -> T:
        """Run a step in a transaction; durable on return. Raises `sqlite3.Error` (disk full).

        A caller that is cancelled stops waiting; the step itself still happens.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((step, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit(), name="commits of the queue")
        return await done

    async def read(self, step: Callable[[], T]) -> T:
        """Run a step that changes nothing."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)

    async def close(self) -> None:
        """Finish what is waiting, then close the file."""
        while self._committing is not None:
            await self._committing
        await self.read(self.database.close)
        self._thread.shutdown()

    async def _commit(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            steps = [step for step, _ in batch]
            try:
                results = await self.read(partial(self.database.transact, steps))
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():
                    done.set_result(result)
        self._committing = None
