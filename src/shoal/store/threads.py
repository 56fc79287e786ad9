# SPDX-License-Identifier: Apache-2.0
"""Threads for disk and hashing, apart from asyncio's own, which resolve host names."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_POOL = ThreadPoolExecutor(max_workers=max(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="disk")


async def open_file(path: Path) -> int:
    """Open a file for reading; return its descriptor. A caller that is cancelled leaks none."""
    opening = submit(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())


async def in_thread(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that blocks in a thread.

    A caller that is cancelled stops waiting; the call itself runs to its end.
    """
    return await submit(function, *args, **kwargs)


def submit(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
    """Start a call in a thread; the future is its outcome."""
    call = functools.partial(function, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(_POOL, call)
