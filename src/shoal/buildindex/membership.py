# SPDX-License-Identifier: Apache-2.0
"""Whether what a manifest needs belongs to its repository."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from shoal.buildindex.dependencies import DependencyWalk
from shoal.model.digest import Digest


class Membership(Protocol):
    """What is in each repository: links of blobs, and records of manifests."""

    async def absent(
        self, repository: str, blobs: Collection[Digest], manifests: Collection[Digest]
    ) -> set[Digest]:
        """Those of `blobs` without a live link and those of `manifests` without a live record.

        The neighbours that can be asked have been asked before a digest counts as absent.
        """
        ...


class MembershipCheck:
    """What of one push is not in its repository; what was found there is not asked for again."""

    def __init__(
        self, membership: Membership | None, repository: str, walk: DependencyWalk
    ) -> None:
        """Without `membership`, nothing is demanded: all that is needed is adopted."""
        self._membership = membership
        self._walk = walk
        self._blobs: set[Digest] = set()
        self._manifests: set[Digest] = set()
        self.repository = repository

    def open(self, digests: Collection[Digest]) -> set[Digest]:
        """Those that must be in the repository and were not found in it yet."""
        blobs, manifests = self._open(digests)
        return blobs | manifests

    async def absent(self, digests: Collection[Digest]) -> set[Digest]:
        """Those that must be in the repository and are not. Raises what `Membership` raises."""
        blobs, manifests = self._open(digests)
        if self._membership is None or not (blobs or manifests):
            return set()
        absent = await self._membership.absent(self.repository, blobs, manifests)
        self._blobs |= blobs - absent
        self._manifests |= manifests - absent
        return absent

    def _open(self, digests: Collection[Digest]) -> tuple[set[Digest], set[Digest]]:
        if self._membership is None:
            return set(), set()
        wanted = set(digests)
        return (
            (wanted & self._walk.blobs) - self._blobs,
            (wanted & self._walk.children) - self._manifests,
        )
