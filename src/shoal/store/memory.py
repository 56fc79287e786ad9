# SPDX-License-Identifier: Apache-2.0
"""Small blobs in memory: manifests and configs, asked for again and again.

They are the same for ever by their digest. Holds bytes alone: whether a repository has them is
asked every time, so that a deletion is seen at once.
"""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic

from cachetools import TTLCache
from prometheus_client import Counter, Gauge

from shoal.model.digest import Digest

SMALL = 256 * 1024
"""Bytes of the largest blob that is worth memory beside manifests."""

_ENTRY = 512
"""Bytes that an entry takes beside its content, about."""

_LATE = 0.1
"""Share of its time by which an entry may go later, when nobody asks."""

_ADDED = Counter("shoal_memory_cache_entries_added", "Small blobs that were taken into memory.")
_ASKED = Counter(
    "shoal_memory_cache_requests", "Lookups of small blobs in memory, by outcome.", ["outcome"]
)
_BYTES = Gauge("shoal_memory_cache_bytes", "Bytes of the small blobs in memory.")
_HIT, _MISS = _ASKED.labels("hit"), _ASKED.labels("miss")


class MemoryCache:
    """The blobs that were used last, as many as fit into a number of bytes. For one event loop."""

    def __init__(self, capacity: int, *, ttl: float = inf) -> None:
        """`capacity` in bytes; 0: nothing is kept. `ttl`: seconds until the disk is asked again.

        With a `ttl`, what nobody asks for stays until `expire` looks.
        """
        self._bodies: TTLCache[Digest, bytes] = TTLCache(
            capacity, ttl, timer=monotonic, getsizeof=lambda body: len(body) + _ENTRY
        )
        self._ttl = ttl
        self._holds_some = asyncio.Event()
        self._counted = 0.0

    def get(self, digest: Digest) -> bytes | None:
        """The verified bytes, if they are here."""
        body = self._bodies.get(digest)
        (_MISS if body is None else _HIT).inc()
        self._count()
        return body

    def keep(self, digest: Digest, body: bytes) -> None:
        """Take in bytes that the caller has verified; what is too large for the cache is left."""
        if len(body) + _ENTRY <= self._bodies.maxsize:
            self._bodies[digest] = body
            _ADDED.inc()
            self._holds_some.set()
            self._count()

    async def expire(self) -> None:
        """Let go what is too old, at most `_LATE` of its time after that is over; runs for ever."""
        while self._ttl < inf:
            await self._holds_some.wait()
            await asyncio.sleep(self._ttl * _LATE)
            self._count()
            if not self._counted:
                self._holds_some.clear()

    def _count(self) -> None:
        """Say how much is held now: what is too old has gone by itself."""
        held = self._bodies.currsize
        _BYTES.inc(held - self._counted)
        self._counted = held
