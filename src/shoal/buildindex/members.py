# SPDX-License-Identifier: Apache-2.0
"""What belongs to which repository, as the build-indexes know it together."""

from __future__ import annotations

from collections.abc import Collection

from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.store import Store
from shoal.model.digest import Digest


class Members:
    """`shoal.buildindex.membership.Membership` over the store and the neighbours."""

    def __init__(self, store: Store, neighbours: Neighbours) -> None:
        self._store = store
        self._neighbours = neighbours

    async def absent(
        self, repository: str, blobs: Collection[Digest], manifests: Collection[Digest]
    ) -> set[Digest]:
        """Those of `blobs` without a live link and those of `manifests` without a live record.

        The neighbours that can be asked have been asked before a digest counts as absent.
        """
        missing = await self._missing(repository, blobs, manifests)
        if missing and await self._neighbours.refresh():
            missing = await self._missing(repository, blobs, manifests)
        return missing

    async def _missing(
        self, repository: str, blobs: Collection[Digest], manifests: Collection[Digest]
    ) -> set[Digest]:
        return await self._store.read(lambda view: view.absent(repository, blobs, manifests))
