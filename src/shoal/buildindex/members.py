# SPDX-License-Identifier: Apache-2.0
"""What belongs to which repository, as the build-indexes know it together."""

from __future__ import annotations

from collections.abc import Collection

from shoal.buildindex.elsewhere import Elsewhere
from shoal.buildindex.lookups import Question
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.store import Store
from shoal.model.digest import Digest
from shoal.web.deadline import Deadline

PATIENCE = 10.0
"""Seconds that a push waits for a backend to say what it has."""


class Members:
    """`shoal.buildindex.membership.Membership` over the store and the neighbours."""

    def __init__(self, store: Store, neighbours: Neighbours, elsewhere: Elsewhere) -> None:
        self._store = store
        self._neighbours = neighbours
        self._elsewhere = elsewhere

    async def absent(
        self, repository: str, blobs: Collection[Digest], manifests: Collection[Digest]
    ) -> set[Digest]:
        """Those of `blobs` without a live link and those of `manifests` without a live record.

        The neighbours that can be asked, and the repository's backend, have been asked before a
        digest counts as absent. Raises `CallFailed` or `ApiError` when the backend cannot be asked.
        """
        missing = await self._missing(repository, blobs, manifests)
        if missing and await self._neighbours.refresh():
            missing = await self._missing(repository, blobs, manifests)
        asked = [Question("blob", repository, str(d)) for d in missing & set(blobs)]
        asked += [Question("manifest", repository, str(d)) for d in missing & set(manifests)]
        open_ = await self._elsewhere.open_questions([(question, False) for question in asked])
        if open_:
            await self._elsewhere.bring(open_, Deadline.after(PATIENCE))
            missing = await self._missing(repository, blobs, manifests)
        return missing

    async def _missing(
        self, repository: str, blobs: Collection[Digest], manifests: Collection[Digest]
    ) -> set[Digest]:
        return await self._store.read(lambda view: view.absent(repository, blobs, manifests))
