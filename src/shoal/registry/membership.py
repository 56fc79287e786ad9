# SPDX-License-Identifier: Apache-2.0
"""Content is shared by all repositories, and only a repository that has it may tell of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def for_members(member: Awaitable[bool], work: Coroutine[Any, Any, T]) -> T | None:
    """Begin `work` at once; return its outcome if `member` comes true, else end it and return None.

    To those that are no members neither the outcome nor a failure of the work makes a difference,
    nor the time that it takes.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(_look)
    try:
        return await task if await member else None
    finally:
        task.cancel()


def _look(task: asyncio.Task[Any]) -> None:
    """Take note of a failure that nobody waits for, or asyncio reports it."""
    if not task.cancelled():
        task.exception()
