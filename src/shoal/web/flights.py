# SPDX-License-Identifier: Apache-2.0
"""One request for all who ask the same, and the memory of answers that hold for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from cachetools import LRUCache

from shoal.model.errors import SourceFailed
from shoal.web.deadline import Deadline

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

CAPACITY = 100_000
"""Answers that are remembered; those that were not asked for longest go first."""

FAILURES = 10_000
"""Failures that are remembered: each has a text, and they hold for seconds."""


class Flights(Generic[K, V]):
    """Work that is under way, by what it is about."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    async def join(
        self, key: K, work: Callable[[], Coroutine[Any, Any, V]], deadline: Deadline
    ) -> V:
        """What the work on `key` comes to; it begins unless it is under way. Raises what it raises.

        It goes on when those who wait for it leave, so it must be bounded. Raises `SourceFailed`
        at the deadline.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work(), name=f"flight {key}")
            task.add_done_callback(lambda done: self._landed(key, done))
        done, _ = await asyncio.wait({task}, timeout=deadline.remaining())
        if not done:
            raise SourceFailed(f"no answer about {key} in time; try again")
        return task.result()

    def _landed(self, key: K, task: asyncio.Task[V]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may have

    async def stop(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Memory(Generic[K, V]):
    """Answers that hold until a moment of each. Pure."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._entries: LRUCache[K, tuple[V, float]] = LRUCache(capacity)

    def keep(self, key: K, value: V, until: float) -> None:
        """Have `get` answer this until then (seconds of the caller's clock)."""
        self._entries[key] = (value, until)

    def get(self, key: K, now: float) -> V | None:
        """What is remembered and still holds."""
        value, until = self._entries.get(key, (None, 0.0))
        return value if now < until else None

    def forget(self, key: K) -> None:
        """Answer nothing any more."""
        self._entries.pop(key, None)
