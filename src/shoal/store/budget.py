# SPDX-License-Identifier: Apache-2.0
"""A bound on the bytes that wait for the disk, over all that one process receives."""

from __future__ import annotations

import asyncio
from collections import deque


class ByteBudget:
    """Bytes in memory, of which no more than `limit` are given out; first come, first served.

    For one event loop at a time. What was taken must be given back.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take_now(self, size: int) -> bool:
        """Take bytes if there are any left, and nobody waits for them; whether it did."""
        if self._waiting or not self._fits(size):
            return False
        self.taken += size
        return True

    async def take(self, size: int) -> None:
        """Wait for bytes. More than `limit` at once are given when nothing else is taken.

        A caller that is cancelled has taken nothing.
        """
        if self.take_now(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(size)
            else:
                self._waiting.remove(entry)
                self._serve()
            raise

    def give_back(self, size: int) -> None:
        """Return bytes that were taken."""
        self.taken -= size
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            self.taken += size
            turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return not self.taken or self.taken + size <= self.limit
