# SPDX-License-Identifier: Apache-2.0
"""Reused memory for pieces on their way from the socket to the disk.

Fresh memory costs a page fault per 4 KiB; a bound on it is what makes fast senders wait for a slow
disk.
"""

from __future__ import annotations

from collections import defaultdict


class Buffers:
    """Hands out memory up to a bound, and keeps what comes back for the next piece."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes handed out at most; a single buffer is always to be had."""
        self._limit = limit
        self._used = 0
        self._free: defaultdict[int, list[bytearray]] = defaultdict(list)

    def take(self, length: int) -> memoryview | None:
        """Memory of exactly `length` bytes, or None until some is given back."""
        capacity = 1 << (length - 1).bit_length() if length > 1 else 1
        if self._used and self._used + capacity > self._limit:
            return None
        self._used += capacity
        free = self._free[capacity]
        memory = free.pop() if free else bytearray(capacity)
        return memoryview(memory)[:length]

    def give_back(self, view: memoryview) -> None:
        """The memory of a view that `take` returned; nobody may use the view any more."""
        memory = view.obj
        view.release()
        if not isinstance(memory, bytearray):
            raise TypeError("not memory of this pool")
        self._used -= len(memory)
        self._free[len(memory)].append(memory)

    def trim(self) -> None:
        """Return memory that nobody uses to the system."""
        self._free.clear()
