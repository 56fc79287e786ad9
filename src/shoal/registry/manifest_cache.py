# SPDX-License-Identifier: Apache-2.0
"""Manifests in memory: small, asked for again and again, and the same for ever by their digest.

Holds bytes alone. Whether a repository has the manifest is asked of the build-index every time, so
that a deletion is seen at once.
"""

from __future__ import annotations

from cachetools import LRUCache

from shoal.model.digest import Digest

_ENTRY = 512
"""Bytes that an entry takes beside its content, about."""


class ManifestCache:
    """The manifests that were used last, as many as fit into a number of bytes."""

    def __init__(self, capacity: int) -> None:
        """`capacity` in bytes; 0: nothing is kept."""
        self._bodies: LRUCache[Digest, bytes] = LRUCache(
            capacity, getsizeof=lambda body: len(body) + _ENTRY
        )

    def get(self, digest: Digest) -> bytes | None:
        """The verified bytes, if they are here."""
        return self._bodies.get(digest)

    def keep(self, digest: Digest, body: bytes) -> None:
        """Take in bytes that the caller has verified; what is too large for the cache is left."""
        if len(body) + _ENTRY <= self._bodies.maxsize:
            self._bodies[digest] = body
