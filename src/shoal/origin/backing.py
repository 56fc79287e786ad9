# SPDX-License-Identifier: Apache-2.0
"""What is noted beside a copy of whether backends have the blob. All but `confirm` blocks.

A copy may be evicted only when it would come back for all who rely on it. So there are two notes:
which backends have the blob, and whether it was pushed to a repository that has no backend, for
which the origins are all there is, whatever an upstream registry has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import msgspec

from shoal.model.digest import Digest
from shoal.store.blobs import BlobStore

BACKED = "backed"
"""Name of the sidecar of a blob that a backend has: a JSON list of ``<backend>|<repository>``."""

UNBACKED = "unbacked"
"""Name of the sidecar of a blob that was pushed to a repository without a backend; it is empty."""

_MAX_BACKED = 256
"""Entries in that sidecar; further backends are asked again at each push."""


class Backing:
    """The notes of one store. Who writes one holds the lock under which copies are removed."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._reachable: Callable[[str], bool] = lambda _: True
        self.confirm: Callable[[Digest], Awaitable[bool]] = _believe
        """Asks the backends themselves, before a copy goes."""

    def known_by(
        self, is_reachable: Callable[[str], bool], confirm: Callable[[Digest], Awaitable[bool]]
    ) -> None:
        """Believe only entries of which `is_reachable` says that they lead to a backend.

        It is called in any thread; `confirm` in the event loop.
        """
        self._reachable = is_reachable
        self.confirm = confirm

    def entries(self, digest: Digest) -> frozenset[str]:
        """The backends that are noted; fewer than there are do no harm."""
        data = self._store.sidecar(digest, BACKED)
        try:
            return frozenset(msgspec.json.decode(data, type=list[str]) if data else ())
        except msgspec.DecodeError:
            return frozenset()

    def note(self, digest: Digest, entries: Collection[str]) -> None:
        """Note that backends have it. The note may get lost: then the copy stays."""
        # One repository stands for all that have their blobs in the same place.
        known = {entry.rpartition("|")[0]: entry for entry in self.entries(digest)}
        new = {entry.rpartition("|")[0]: entry for entry in entries}
        if not new.keys() <= known.keys():
            noted = sorted((new | known).values())[:_MAX_BACKED]
            data = msgspec.json.encode(noted)
            self._store.write_sidecar(digest, BACKED, data, durable=False)

    def forget(self, digest: Digest) -> None:
        """Note that no backend is known to have it any more."""
        self._store.write_sidecar(digest, BACKED, b"[]", durable=False)

    def note_unbacked(self, digest: Digest) -> None:
        """Note, durably, that somebody relies on the origins alone."""
        if not self.is_unbacked(digest):
            self._store.write_sidecar(digest, UNBACKED, b"", durable=True)

    def is_unbacked(self, digest: Digest) -> bool:
        """Whether somebody relies on the origins alone. A damaged mark is a mark, too."""
        return self._store.is_marked(digest, UNBACKED)

    def may_go(self, digest: Digest) -> bool:
        """Whether the blob would come back for all, by what the config says now."""
        if not self._store.is_marked(digest, BACKED) or self.is_unbacked(digest):
            return False
        entries = self.entries(digest)
        return bool(entries) and all(map(self._reachable, entries))


async def _believe(_: Digest) -> bool:
    return True
