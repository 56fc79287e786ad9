# SPDX-License-Identifier: Apache-2.0
"""Which copies of an origin may go to make room: those that a backend has, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shoal.model.digest import Digest
from shoal.origin.local import LocalBlobs
from shoal.store.blobs import BlobStore
from shoal.store.eviction import CachedBlob
from shoal.store.threads import in_thread


class BackedCopies:
    """The copies of this origin, for its `shoal.store.room.Room`.

    One stays unless all who rely on the blob would get it back from a backend; and while it is
    being received, copied, written to a backend or sent to a peer. An evicted blob comes back from
    the backend when it is asked for.
    """

    def __init__(
        self,
        store: BlobStore,
        local: LocalBlobs,
        busy: Callable[[Digest], bool],
        forget: Callable[[Digest], None],
    ) -> None:
        """`busy` says whether the peer endpoint sends a blob; `forget` takes it out of there."""
        self._store = store
        self._local = local
        self._busy = busy
        self._forget = forget

    def blobs(self) -> Iterator[CachedBlob]:
        """All copies. Blocks."""
        several = len(self._store.volumes.paths) > 1
        for copy in self._local.copies():
            digest = copy.digest
            stays = copy.in_use or self._busy(digest) or not self._local.backing.may_go(digest)
            volume = self._store.volumes.index(self._store.path(digest)) if several else 0
            yield CachedBlob(digest, copy.size, copy.last_used, stays, volume)

    async def evict(self, digest: Digest) -> bool:
        """Remove a copy, unless it has to stay after all; readers that have it open can finish."""
        if self._busy(digest) or not await self._local.backing.confirm(digest):
            return False
        if self._busy(digest) or await in_thread(self._local.evict, digest) is None:
            return False
        self._forget(digest)
        return True
