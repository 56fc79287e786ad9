# SPDX-License-Identifier: Apache-2.0
"""What a manifest needs: a walk over the manifest and its children that does no I/O.

An image needs its config, its layers (not the foreign ones) and itself; an index needs itself, and
of its children what the policy says. A manifest's ``subject`` may be missing (distribution-spec,
"Pushing manifests with subject") and is no dependency. The caller reads the manifests that the walk
asks for and feeds them to it, so that reading and retrying stay its own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from shoal.model.digest import Digest
from shoal.model.manifest import (
    Descriptor,
    IndexChildren,
    InvalidManifest,
    Manifest,
    parse_manifest,
)
from shoal.model.media_types import MANIFEST_TYPES

MAX_DEPENDENCIES = 10_000
MAX_DEPTH = 8
"""Manifests on the longest way from the tagged one to a leaf, both included."""

MAX_BYTES = 32 * 1024 * 1024
"""Bytes of all manifests of one walk: what was parsed of them stays in memory until its end."""


@dataclass(frozen=True, slots=True)
class ReadManifest:
    """A manifest that was read in a walk."""

    manifest: Manifest
    size: int
    """Bytes."""


class DependencyWalk:
    """Collects the dependencies of one manifest, breadth first, each digest once.

    `pending` names the manifests to read next; `feed` takes one that was read, `absent` goes on
    without one that is not to be had, `drop` without an optional one that is not here. The walk is
    over when nothing is pending.
    """

    def __init__(
        self,
        root: Digest,
        *,
        children: IndexChildren = "required",
        max_count: int = MAX_DEPENDENCIES,
        max_depth: int = MAX_DEPTH,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._root = root
        self._children = children
        self._max_count = max_count
        self._max_depth = max_depth
        self._max_bytes = max_bytes
        self._bytes = 0
        self._read: dict[Digest, ReadManifest] = {}
        self._blobs: dict[Digest, None] = {}
        self._digests: dict[Digest, None] = {root: None}
        self._optional: set[Digest] = set()
        self._manifest_types: dict[Digest, str | None] = {root: None}
        self._depths: dict[Digest, int] = {root: 1}
        self._pending: dict[Digest, None] = {root: None}

    @property
    def digests(self) -> list[Digest]:
        """Every digest found so far, the root first: manifests and blobs, in order of discovery."""
        return list(self._digests)

    @property
    def pending(self) -> list[Digest]:
        """Manifests to be read, in the order in which they were found."""
        return list(self._pending)

    @property
    def blobs(self) -> AbstractSet[Digest]:
        """Those of `digests` that are needed as blobs: configs, layers, other content of indexes.

        A digest may be both a blob and a manifest.
        """
        return self._blobs.keys()

    @property
    def children(self) -> AbstractSet[Digest]:
        """Those of `digests` that are needed as manifests: all below the root."""
        return self._manifest_types.keys() - {self._root}

    @property
    def read(self) -> Mapping[Digest, ReadManifest]:
        """The manifests that were fed, the root first."""
        return self._read

    @property
    def optional(self) -> frozenset[Digest]:
        """Those of `digests` that may be missing: children of a sparse index."""
        return frozenset(self._optional)

    def feed(self, digest: Digest, body: bytes, content_type: str | None = None) -> Manifest:
        """Take the bytes of a pending manifest (verified against its digest by the caller).

        `content_type` is the header that came with the root; a child must be what its parent calls
        it. Raises `InvalidManifest` when the document is none, or a bound is exceeded.
        """
        del self._pending[digest]
        self._bytes += len(body)
        if self._bytes > self._max_bytes:
            raise InvalidManifest(
                f"it and the manifests below it have more than {self._max_bytes} bytes in all"
            )
        try:
            manifest = parse_manifest(body, self._manifest_types[digest] or content_type)
        except InvalidManifest as error:
            if digest == self._root:
                raise
            raise InvalidManifest(f"child manifest {digest}: {error}") from error
        depth = self._depths[digest] + 1
        for child in manifest.children if self._children != "ignore" else ():
            self._add_child(child, depth)
        for blob in manifest.blobs():
            self._add_blob(blob.digest)
            self._optional.discard(blob.digest)
        self._read[digest] = ReadManifest(manifest, len(body))
        return manifest

    def absent(self, digest: Digest) -> None:
        """Go on without a pending manifest; it stays one of the dependencies."""
        del self._pending[digest]

    def drop(self, digest: Digest) -> None:
        """Go on without an optional child; it is no dependency."""
        self._optional.remove(digest)
        self._pending.pop(digest, None)
        self._blobs.pop(digest, None)
        self._manifest_types.pop(digest, None)
        del self._digests[digest]

    def _add_child(self, child: Descriptor, depth: int) -> None:
        if self._children == "present" and child.digest not in self._digests:
            self._optional.add(child.digest)
        if child.media_type not in MANIFEST_TYPES:
            # An index may list other content, as build caches do. It must be there, that is all.
            self._add_blob(child.digest)
            return
        self._add(child.digest)
        if child.digest in self._manifest_types:
            known = self._manifest_types[child.digest]
            if known not in (None, child.media_type):
                raise InvalidManifest(
                    f"{child.digest} is listed as {known} and as {child.media_type}"
                )
            return
        if depth > self._max_depth:
            raise InvalidManifest(f"indexes are nested more than {self._max_depth} deep")
        self._manifest_types[child.digest] = child.media_type
        self._depths[child.digest] = depth
        self._pending[child.digest] = None

    def _add_blob(self, digest: Digest) -> None:
        self._blobs[digest] = None
        self._add(digest)

    def _add(self, digest: Digest) -> None:
        self._digests[digest] = None
        if len(self._digests) > self._max_count:
            raise InvalidManifest(f"the manifest needs more than {self._max_count} blobs")
