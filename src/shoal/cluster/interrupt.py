# SPDX-License-Identifier: Apache-2.0
"""Run a coroutine that SIGINT, SIGTERM and SIGHUP end in an orderly way."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the run; what it had started is stopped."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"by {number.name}")
        self.number = number


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` in a new event loop; each signal cancels it once.

    Raises `Interrupted` when a signal came and `main` let itself be cancelled.
    """
    return asyncio.run(_guarded(main))


async def _guarded(main: Coroutine[Any, Any, _T]) -> _T:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main)
    received: list[signal.Signals] = []

    def cancel(number: signal.Signals) -> None:
        received.append(number)
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, cancel, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
