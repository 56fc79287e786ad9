# SPDX-License-Identifier: Apache-2.0
"""Threads for disk and hashing, apart from asyncio's own, which resolve host names."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_POOL = ThreadPoolExecutor(max_workers=max(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="disk")


async def in_thread(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that blocks in a thread.

    A caller that is cancelled stops waiting; the call itself runs to its end.
    """
    return await submit(function, *args, **kwargs)


def submit(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
    """Start a call in a thread; the future is its outcome."""
    call = functools.partial(function, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(_POOL, call)
