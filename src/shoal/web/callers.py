# SPDX-License-Identifier: Apache-2.0
"""Work only for as long as the one who asked still waits for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

GLANCE = 0.1
"""Seconds between two looks at the connection. The HTTP library tells nobody that it ended."""

T = TypeVar("T")


class CallerGone(ConnectionError):
    """The caller closed the connection before it had its answer."""


async def while_connected(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work of a request; cancel it, and raise `CallerGone`, when its caller has gone."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=GLANCE))[0]:
            if request.transport is None or request.transport.is_closing():
                raise CallerGone(f"the caller of {request.method} {request.path} has gone")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
