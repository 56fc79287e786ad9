# SPDX-License-Identifier: Apache-2.0
"""What this agent has seen the build-index confirm: which repository has what.

It is asked only while no build-index answers, so that a pull which has begun goes on, and what this
host has pulled before can be pulled again. Pure, and forgotten with the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cachetools import LRUCache

from shoal.model.digest import Digest
from shoal.model.manifest import Descriptor, FoundManifest


@dataclass(frozen=True, slots=True)
class Said:
    """What a manifest says of a blob, which may be wrong."""

    size: int
    """Bytes."""

    manifest: Digest
    layer: int
    """Its place among the blobs of the manifest, the config being the first."""


_UNSAID = object()

CAPACITY = 100_000
"""Pairs of a repository and a blob or manifest; some 30 MB."""


class Membership:
    """Pairs of a repository and what it has, those that were not used for longest going first.

    Blobs and manifests are kept apart, as their routes are: a blob that is a manifest elsewhere is
    none here.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._blobs: LRUCache[tuple[str, Digest], object] = LRUCache(capacity)
        """With what the manifest said that was read last; `_UNSAID` when none did."""
        self._manifests: LRUCache[tuple[str, Digest], FoundManifest] = LRUCache(capacity)
        self._learned: LRUCache[tuple[str, Digest], bool] = LRUCache(capacity)

    def confirm_blob(self, repository: str, digest: Digest) -> None:
        """The build-index said that the repository has it."""
        self._blobs.setdefault((repository, digest), _UNSAID)

    def confirm_blobs(self, repository: str, manifest: Digest, blobs: Iterable[Descriptor]) -> None:
        """A manifest of the repository needs them, in this order, so it had them."""
        for layer, blob in enumerate(blobs):
            self._blobs[repository, blob.digest] = Said(blob.size, manifest, layer)

    def confirm_manifest(self, repository: str, found: FoundManifest) -> None:
        """The build-index found the manifest in the repository."""
        self._manifests[repository, found.digest] = found

    def learned(self, repository: str, manifest: Digest) -> None:
        """All that the manifest needs was confirmed, as far as the repository has it."""
        self._learned[repository, manifest] = True

    def has_learned(self, repository: str, manifest: Digest) -> bool:
        """Whether `learned` was called for this manifest."""
        return self._learned.get((repository, manifest), False)

    def deny_blob(self, repository: str, digest: Digest) -> None:
        """The build-index said that the repository does not have it, or has no more."""
        self._blobs.pop((repository, digest), None)

    def deny_manifest(self, repository: str, digest: Digest) -> None:
        """The build-index said that the repository does not have it, or has no more."""
        self._manifests.pop((repository, digest), None)

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the repository had the blob when that was last said."""
        return self._blobs.get((repository, digest)) is not None

    def said_of(self, repository: str, digest: Digest) -> Said | None:
        """What a manifest of the repository says of a blob."""
        said = self._blobs.get((repository, digest))
        return said if isinstance(said, Said) else None

    def manifest(self, repository: str, digest: Digest) -> FoundManifest | None:
        """The manifest, if the repository had it when that was last said."""
        return self._manifests.get((repository, digest))
