# SPDX-License-Identifier: Apache-2.0
"""Makes room on disk for what is to come, by evicting what was used longest ago."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog
from prometheus_client import Counter, Gauge

from shoal.model.digest import Digest
from shoal.model.errors import InsufficientStorage, WouldEvict
from shoal.store.eviction import CachedBlob, Excess, Limits, Space, choose, excess
from shoal.store.threads import in_thread
from shoal.store.volumes import Volumes

HEADROOM: Final = 64 * 1024 * 1024
HEADROOM_SHARE: Final = 0.02
"""Nothing new begins when it would leave less than this (the smaller one) free on its volume:
queues, logs and marks need a little room to go on, or nothing could ever be evicted again."""

CHECK_EVERY: Final = 30.0
"""Seconds between two looks at the volumes while nothing comes: others write to them, too."""

COUNT_EVERY: Final = 900.0
"""Seconds between two counts of all copies."""

PATIENCE: Final = 5.0
"""Seconds until a cache of which too little could be evicted is looked through again."""

AT_ONCE: Final = 8
"""Copies that are evicted at the same time: each may be a question to a backend."""

ROUNDS: Final = 5
"""Looks through the cache for one blob: a copy that was chosen may turn out to be in use."""

log = structlog.get_logger()

_BYTES = Gauge("shoal_cache_bytes", "Bytes of the copies on this host's disks, at the last count.")
_BLOBS = Gauge("shoal_cache_blobs", "Copies on this host's disks, at the last count.")
_EVICTED = Counter(
    "shoal_cache_evicted_blobs",
    "Copies evicted: as the cache was over its budget, or as its volume had too little free space.",
    ["why"],
)
_EVICTED_BYTES = Counter("shoal_cache_evicted_bytes", "Bytes of the copies evicted.", ["why"])
_REFUSED = Counter("shoal_cache_refused", "Blobs for which there was no room.")
for _why in ("budget", "free_space"):
    # What never happened yet is 0, not absent: alerts on its rate work from the first time on.
    _EVICTED.labels(_why)
    _EVICTED_BYTES.labels(_why)


class Cache(Protocol):
    """The copies of which some may go."""

    def blobs(self) -> Iterator[CachedBlob]:
        """All copies, protected or not as of now. Blocks: called in a thread."""

    async def evict(self, digest: Digest) -> bool:
        """Remove a copy, unless it came to be protected meanwhile; whether it was removed."""


@dataclass(eq=False, slots=True)
class _Reservation:
    """Room for a blob that is being received."""

    digest: Digest
    size: int
    file: Path

    def outstanding(self) -> int:
        """Bytes that are not in the file yet. Blocks."""
        try:
            return max(0, self.size - self.file.stat().st_blocks * 512)
        except OSError:
            return self.size


class Room:
    """The space that a service's copies take, on one volume or several.

    The budget is a hard limit. The free space that should stay is not: when nothing more may be
    evicted, new blobs are taken until the volume is full but for a small rest.
    """

    def __init__(
        self,
        volumes: Volumes,
        limits: Limits,
        cache: Cache,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volumes = volumes
        self._limits = limits
        self._cache = cache
        self._clock = clock
        self._lock = asyncio.Lock()
        self._reserved: set[_Reservation] = set()
        self._used = 0
        self._counted = -float("inf")
        self._in_vain = -float("inf")

    @asynccontextmanager
    async def reserve(
        self, digest: Digest, size: int, file: Path, *, evict: bool = True
    ) -> AsyncIterator[None]:
        """Have room for a blob of `size` bytes that will be written to `file`, until the end.

        Evicts others first when it has to. Raises `InsufficientStorage`; without `evict`
        `WouldEvict`, when others would have to go.
        """
        reservation = _Reservation(digest, size, file)
        try:
            await self._make_room(reservation, evict=evict)
            yield
            self._used += size
        finally:
            self._reserved.discard(reservation)

    async def check(self) -> None:
        """Evict what the limits ask for now."""
        await self._make_room(None)

    async def watch(self) -> None:
        """Check for good: others write to the volumes, too, and copies go in other ways."""
        while True:
            try:
                if self._clock() - self._counted > COUNT_EVERY:
                    async with self._lock:
                        await in_thread(self._look, Excess(), frozenset())
                await self.check()
            except OSError as error:
                log.warning("the cache cannot be looked through", error=str(error))
            await asyncio.sleep(CHECK_EVERY)

    async def _make_room(self, reservation: _Reservation | None, *, evict: bool = True) -> None:
        async with self._lock:
            if self._limits.budget and self._counted < 0:
                await in_thread(self._look, Excess(), frozenset())
            if reservation is not None:
                self._reserved.add(reservation)  # not sooner: those who wait have no claim yet
            needed, why = await self._assess(reservation)
            if needed and not evict and reservation is not None:
                raise WouldEvict(
                    f"{reservation.digest}: a copy of what a backend has evicts no other",
                    detail={"digest": str(reservation.digest), "size": reservation.size},
                )
            if needed and self._clock() - self._in_vain > PATIENCE:
                stayed: set[Digest] = set()
                gone = 0
                for _ in range(ROUNDS):
                    refused = len(stayed)
                    gone += await self._evict(needed, stayed)
                    needed, why = await self._assess(reservation)
                    if not needed or len(stayed) == refused:
                        break
                if needed:
                    self._note_in_vain(needed, gone)
        if reservation is not None and why is not None:
            _REFUSED.inc()
            raise InsufficientStorage(
                f"there is no room for {reservation.digest} ({reservation.size} bytes): {why}",
                detail={"digest": str(reservation.digest), "size": reservation.size},
            )

    async def _assess(self, reservation: _Reservation | None) -> tuple[Excess, str | None]:
        """What is to be freed, and why the reservation would be refused as things are."""
        return await in_thread(self._assess_now, reservation, list(self._reserved))

    def _assess_now(
        self, reservation: _Reservation | None, reserved: list[_Reservation]
    ) -> tuple[Excess, str | None]:
        total = sum(entry.size for entry in reserved)
        spaces = self._spaces(reserved)
        needed = excess(self._limits, self._used, total, spaces)
        if reservation is None:
            return needed, None
        return needed, self._refusal(reservation, total, spaces)

    def _spaces(self, reserved: list[_Reservation]) -> list[tuple[Space, int]]:
        coming = [0] * len(self._volumes.paths)
        for entry in reserved:
            coming[self._volumes.index(entry.file)] += entry.outstanding()
        return list(zip(self._volumes.spaces(), coming, strict=True))

    def _refusal(
        self, reservation: _Reservation, reserved: int, spaces: list[tuple[Space, int]]
    ) -> str | None:
        budget = self._limits.budget
        if budget and self._used + reserved > budget:
            return f"the budget of {budget} bytes is used up by copies that have to stay"
        number = self._volumes.index(reservation.file)
        space, coming = spaces[number]
        if space.free - coming < min(HEADROOM, HEADROOM_SHARE * space.total):
            return (
                f"{self._volumes.paths[number]} has {space.free} bytes left, {coming} of them "
                "spoken for, and nothing more there may be evicted"
            )
        return None

    async def _evict(self, needed: Excess, stayed: set[Digest]) -> int:
        """Evict what is needed, if there is so much; returns the number of copies.

        Not those that `stayed` when it was tried before; further ones are added to them.
        """
        reserved = frozenset(entry.digest for entry in self._reserved)
        chosen = await in_thread(self._look, needed, reserved, frozenset(stayed))
        gone = 0
        while batch := chosen[:AT_ONCE]:
            del chosen[:AT_ONCE]
            outcomes = await asyncio.gather(
                *(self._cache.evict(copy.digest) for copy, _ in batch), return_exceptions=True
            )
            for (copy, why), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, OSError):
                    # The others can go all the same.
                    log.error(
                        "a copy cannot be evicted", digest=str(copy.digest), error=str(outcome)
                    )
                if outcome is not True:
                    stayed.add(copy.digest)
                else:
                    gone += 1
                    self._note_evicted(copy, why)
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, OSError):
                    raise outcome
        return gone

    def _note_evicted(self, copy: CachedBlob, why: str) -> None:
        self._used -= copy.size
        _BYTES.dec(copy.size)
        _BLOBS.dec()
        _EVICTED.labels(why).inc()
        _EVICTED_BYTES.labels(why).inc(copy.size)
        log.info("evicted", digest=str(copy.digest), size=copy.size, why=why)

    def _note_in_vain(self, still: Excess, gone: int) -> None:
        now, before = self._clock(), self._in_vain
        self._in_vain = now
        say = log.warning if now - before > COUNT_EVERY else log.debug
        say(
            "too little could be evicted",
            evicted=gone,
            over_budget=still.budget,
            short={str(self._volumes.paths[n]): size for n, size in still.volumes.items()},
        )

    def _look(
        self,
        needed: Excess,
        reserved: frozenset[Digest],
        stayed: frozenset[Digest] = frozenset(),
    ) -> list[tuple[CachedBlob, str]]:
        """Look through all copies: count them, and choose those that go. Blocks."""
        count = _Count()
        copies = count.those(self._cache.blobs(), reserved)
        chosen = choose((copy for copy in copies if copy.digest not in stayed), needed)
        self._used = count.bytes
        self._counted = self._clock()
        _BYTES.set(count.bytes)
        _BLOBS.set(count.blobs)
        return [(copy, why) for copy, why in chosen]


@dataclass(slots=True)
class _Count:
    bytes: int = 0
    blobs: int = 0

    def those(
        self, copies: Iterator[CachedBlob], reserved: frozenset[Digest]
    ) -> Iterator[CachedBlob]:
        """Count what passes; those being received are counted by their reservations."""
        for copy in copies:
            if copy.digest not in reserved:
                self.bytes += copy.size
                self.blobs += 1
                yield copy
