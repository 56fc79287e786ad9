# SPDX-License-Identifier: Apache-2.0
"""Threads of one backend: a storage that hangs takes its own, and not those of the disks."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 8
"""Calls of one backend that block at the same time."""

CLEANUP = 1.0
"""Seconds that a caller waits for what is cleaned up after it."""


class Threads:
    """Calls that block, and that nobody can end once they have begun."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="backend")

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it; a caller that is cancelled stops waiting, the call itself runs to its end."""
        return await self._submit(functools.partial(function, *args, **kwargs))

    async def open_file(self, path: Path) -> int:
        """Open a file for reading; return its descriptor. A caller that is cancelled leaks none."""
        return await self._opened(path, os.O_RDONLY | os.O_CLOEXEC, 0)

    async def new_file(self, path: Path) -> int:
        """Make a file and open it for writing, likewise."""
        return await self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    async def clean_up(
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call it, and wait no longer than `CLEANUP`: it is done later, or with the process."""
        cleaning = self._submit(functools.partial(function, *args, **kwargs))
        cleaning.add_done_callback(_look)
        await asyncio.wait({cleaning}, timeout=CLEANUP)
        if cleaning.done():
            cleaning.result()

    def close(self) -> None:
        """Begin nothing more; what hangs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _opened(self, path: Path, flags: int, mode: int) -> int:
        opening = self._submit(functools.partial(os.open, path, flags, mode))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    def _submit(self, call: Callable[[], R]) -> asyncio.Future[R]:
        return asyncio.get_running_loop().run_in_executor(self._pool, call)


def _look(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()  # looked at, so that it is not logged when nobody waits any more


def _close_unwanted(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
