# SPDX-License-Identifier: Apache-2.0
"""Which copies a cache gives up: least recently used first, never a protected one. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shoal.model.digest import Digest

LOW_WATER = 0.95
"""A cache beyond a limit is emptied until it is this far below it, so that it has not to look
through all of its copies again for the next blob."""

Why = Literal["budget", "free_space"]
"""What a copy went for: the cache was larger than its budget; its volume had too little space."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a cache may grow. Sizes in bytes."""

    budget: int = 0
    """All copies together; 0: no limit."""

    min_free: int = 0
    """What stays free on each volume, beside `min_free_share` of it: the larger one counts."""

    min_free_share: float = 0.0

    def least_free(self, total: int) -> int:
        """Bytes that should stay free on a volume of `total` bytes."""
        return max(self.min_free, math.ceil(self.min_free_share * total))


@dataclass(frozen=True, slots=True)
class Space:
    """A volume, in bytes."""

    total: int
    free: int
    """What a program without privileges can still write."""


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """A copy in a cache."""

    digest: Digest
    size: int
    """Bytes that its removal would free."""

    last_used: float
    """Any clock, the same one for all copies."""

    protected: bool = False
    """It has to stay: in use, or the only copy."""

    volume: int = 0


@dataclass(frozen=True, slots=True)
class Excess:
    """Bytes to be freed: in all for the budget, and on single volumes for their free space."""

    budget: int = 0
    volumes: Mapping[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.budget > 0 or bool(self.volumes)


def excess(
    limits: Limits, used: int, reserved: int, volumes: Sequence[tuple[Space, int]]
) -> Excess:
    """What is to be freed for the limits to hold; nothing while they do.

    `used`: bytes of all copies; `reserved`: bytes in all of those that are being received;
    `volumes`: each one's space, and the bytes that those being received will still take of it.
    """
    over = 0
    if limits.budget and used + reserved > limits.budget:
        over = used + reserved - math.floor(limits.budget * LOW_WATER)
    short = {}
    for number, (space, coming) in enumerate(volumes):
        least = limits.least_free(space.total)
        if space.free - coming < least:
            short[number] = math.ceil(least / LOW_WATER) - (space.free - coming)
    return Excess(over, short)


def choose(copies: Iterable[CachedBlob], needed: Excess) -> list[tuple[CachedBlob, Why]]:
    """The copies that go, in the order in which they should; looks at each copy once.

    For each volume that is short, and for the budget, they are those used longest ago, as few as
    free enough; all that are not protected when that is not enough. What goes for a volume counts
    for the budget. Memory grows with what is chosen, not with the copies.
    """
    for_budget = _Oldest(needed.budget)
    for_volume = {number: _Oldest(size) for number, size in needed.volumes.items()}
    for copy in copies:
        if copy.protected:
            continue
        for_budget.offer(copy)
        if copy.volume in for_volume:
            for_volume[copy.volume].offer(copy)
    chosen: dict[tuple[int, Digest], tuple[CachedBlob, Why]] = {}
    for oldest in for_volume.values():
        chosen |= {(copy.volume, copy.digest): (copy, "free_space") for copy in oldest.copies()}
    freed = sum(copy.size for copy, _ in chosen.values())
    for copy in for_budget.copies():
        if freed >= needed.budget:
            break
        if (copy.volume, copy.digest) not in chosen:
            chosen[copy.volume, copy.digest] = (copy, "budget")
            freed += copy.size
    return sorted(chosen.values(), key=lambda entry: _age(entry[0]))


class _Oldest:
    """Of the copies offered, those used longest ago, as few as make up a number of bytes."""

    def __init__(self, needed: int) -> None:
        self._needed = needed
        self._size = 0
        self._heap: list[_Youngest] = []

    def offer(self, copy: CachedBlob) -> None:
        """Take it in, and let go of the youngest ones that are not needed any more."""
        if self._size >= self._needed and (
            not self._heap or _age(copy) >= _age(self._heap[0].copy)
        ):
            return
        heapq.heappush(self._heap, _Youngest(copy))
        self._size += copy.size
        while self._heap and self._size - self._heap[0].copy.size >= self._needed:
            self._size -= heapq.heappop(self._heap).copy.size

    def copies(self) -> list[CachedBlob]:
        """Oldest first."""
        return sorted((entry.copy for entry in self._heap), key=_age)


class _Youngest:
    """Orders a heap so that the copy used last is on top."""

    __slots__ = ("copy",)

    def __init__(self, copy: CachedBlob) -> None:
        self.copy = copy

    def __lt__(self, other: _Youngest) -> bool:
        return _age(self.copy) > _age(other.copy)


def _age(copy: CachedBlob) -> tuple[float, str, int]:
    """Sorts the copies from the one used longest ago; the digest decides between equal ones."""
    return copy.last_used, copy.digest.hex, copy.volume
