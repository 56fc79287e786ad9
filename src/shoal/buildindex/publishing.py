# SPDX-License-Identifier: Apache-2.0
"""Writing records: to this host's disk, to the neighbours, and to the queue of the backends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from shoal.buildindex.database import Transaction
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.store import Store

T = TypeVar("T")


class Publisher:
    """All writes of one build-index but those that its neighbours and garbage collection make."""

    def __init__(
        self, store: Store, neighbours: Neighbours, *, wrote: Callable[[], None] = lambda: None
    ) -> None:
        """`wrote` is called after each write, before the neighbours have it."""
        self._store = store
        self._neighbours = neighbours
        self._wrote = wrote
        self._writes: set[asyncio.Task[object]] = set()

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """Write, and give what was written to the neighbours; goes on when the caller leaves."""
        task = asyncio.create_task(self._write_and_spread(operation), name="write")
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)

    async def _write_and_spread(self, operation: Callable[[Transaction], T]) -> T:
        result, records = await self._store.write(operation)
        if records:
            self._wrote()
        await self._neighbours.spread(records)
        return result

    async def write_or_ask(self, operation: Callable[[Transaction], bool]) -> bool:
        """Write; when nothing is there to write on, look again with what the neighbours have."""
        if await self.write(operation):
            return True
        return await self._neighbours.refresh() and await self.write(operation)

    async def stop(self) -> None:
        """Finish the writes that are under way."""
        await asyncio.gather(*self._writes, return_exceptions=True)
