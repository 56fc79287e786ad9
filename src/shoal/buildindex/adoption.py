# SPDX-License-Identifier: Apache-2.0
"""Manifests that come from a backend or an upstream, and what they make part of a repository."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shoal.buildindex.records import ManifestEntry
from shoal.model.digest import Digest
from shoal.model.manifest import (
    MAX_MANIFEST_BYTES,
    InvalidManifest,
    Manifest,
    parse_manifest,
)
from shoal.model.media_types import MANIFEST_TYPES
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound


class Origins(Protocol):
    """Where manifests are read (`shoal.origin.client.OriginCluster`).

    What no origin has they fetch from the repository's backend or upstream.
    """

    async def read(
        self, digest: Digest, *, deadline: Deadline, limit: int, namespace: str = ""
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Adoptable:
    """What becomes part of a repository together."""

    digest: Digest
    entry: ManifestEntry | None
    """None: it is no manifest; a tag may point to anything."""

    blobs: tuple[Digest, ...] = ()
    """What the manifest needs as blobs."""


def entry_of(manifest: Manifest, size: int) -> ManifestEntry:
    """What a repository keeps of a manifest of `size` bytes."""
    return ManifestEntry(
        media_type=manifest.media_type,
        size=size,
        subject=None if manifest.subject is None else str(manifest.subject.digest),
        artifact_type=manifest.artifact_type,
        annotations=dict(manifest.annotations),
        references=[str(digest) for digest in manifest.references()],
    )


async def read_adoptable(
    origins: Origins, repository: str, digest: Digest, deadline: Deadline
) -> Adoptable | None:
    """Read a manifest through the origins, verified; None: neither they nor their sources have it.

    Raises `CallFailed` when that could not be told.
    """
    try:
        body = await origins.read(
            digest, deadline=deadline, limit=MAX_MANIFEST_BYTES, namespace=repository
        )
    except NotFound:
        return None
    return await in_thread(_adoptable, digest, body)


def _adoptable(digest: Digest, body: bytes) -> Adoptable:
    try:
        manifest = parse_manifest(body)
    except InvalidManifest:
        return Adoptable(digest, None)
    # An index may list other content, as build caches do: that is no manifest.
    others = [child for child in manifest.children if child.media_type not in MANIFEST_TYPES]
    blobs = tuple(part.digest for part in (*manifest.blobs(), *others))
    return Adoptable(digest, entry_of(manifest, len(body)), blobs)
