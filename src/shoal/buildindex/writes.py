# SPDX-License-Identifier: Apache-2.0
"""The writes of a build-index: what each reads, demands and changes, in one transaction.

A push relies on links that were there when it looked. It renews those that are older than
`renew_before` (wall time in ms): garbage collection deletes no record that is younger than its
grace time, and any renewal wins over its deletions, on whatever build-index it was made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from shoal.buildindex.adoption import Adoptable
from shoal.buildindex.clock import Version
from shoal.buildindex.database import Refused, Transaction
from shoal.buildindex.garbage import Condemned
from shoal.buildindex.records import ManifestEntry, Record
from shoal.model.digest import Digest
from shoal.model.errors import Unsupported

MAX_NAMED = 8
"""Manifests that a refusal to delete a blob names."""


class Lost(Refused):
    """Something that a manifest needs has left the repository since that was checked."""

    def __init__(self, digests: Collection[Digest]) -> None:
        super().__init__(", ".join(sorted(map(str, digests))))
        self.digests = frozenset(digests)


def take(transaction: Transaction, records: Sequence[Record]) -> int:
    """Keep those of a neighbour's records that are newer than what is here; say how many.

    Raises `BadRequest` for a malformed one; nothing is kept then.
    """
    for record in records:
        record.check()
    return sum([transaction.take(record) for record in records])


def put_manifest(
    transaction: Transaction,
    repository: str,
    digest: Digest,
    entry: ManifestEntry,
    tags: Iterable[str],
    *,
    needs_blobs: Collection[Digest],
    needs_manifests: Collection[Digest],
    renew_before: int,
) -> None:
    """Make a manifest part of the repository, and point tags to it; raises `Lost`."""
    lost = transaction.absent(repository, needs_blobs, needs_manifests)
    if lost:
        raise Lost(lost)
    transaction.put("manifest", repository, str(digest), entry)
    for needed in {*entry.references, *map(str, needs_blobs), *map(str, needs_manifests)}:
        _renew(transaction, repository, needed, renew_before)
    for tag in tags:
        transaction.put("tag", repository, tag, str(digest))


def adopt(
    transaction: Transaction,
    repository: str,
    tag: str,
    digest: Digest,
    *,
    manifests: Mapping[Digest, ManifestEntry],
    blobs: Iterable[Digest],
    renew_before: int,
) -> Record:
    """Point a tag to a digest, and make all that this needs part of the repository."""
    for name, entry in manifests.items():
        held = transaction.version("manifest", repository, str(name))
        if held is None or held[1] or held[0].wall_ms < renew_before or name == digest:
            transaction.put("manifest", repository, str(name), entry)
    for blob in blobs:
        link(transaction, repository, blob, renew_before=renew_before)
    return transaction.put("tag", repository, tag, str(digest))


def adopt_stored(
    transaction: Transaction, repository: str, tag: str | None, found: Adoptable
) -> None:
    """Make what a backend has part of the repository, where no record says anything about it.

    Only the blobs of a manifest come back when they were deleted: those that a manifest needs are
    part of its repository.
    """
    version = Version.adopted_at(transaction.wall_ms, transaction.node)
    name = str(found.digest)
    if found.entry is not None and transaction.version("manifest", repository, name) is None:
        transaction.put_at(version, "manifest", repository, name, found.entry)
    if transaction.has_manifest(repository, name):
        for blob in map(str, found.blobs):
            held = transaction.version("blob", repository, blob)
            if held is None:
                transaction.put_at(version, "blob", repository, blob, "")
            elif held[1]:
                transaction.put("blob", repository, blob, "")
    if tag is not None and transaction.version("tag", repository, tag) is None:
        transaction.put_at(version, "tag", repository, tag, name)


def link_stored(transaction: Transaction, repository: str, digest: Digest) -> None:
    """Make a blob that a backend has part of the repository, if no record speaks of it."""
    name = str(digest)
    if transaction.version("blob", repository, name) is None:
        version = Version.adopted_at(transaction.wall_ms, transaction.node)
        transaction.put_at(version, "blob", repository, name, "")


def adopt_confirmed(
    transaction: Transaction,
    repository: str,
    tag: str | None,
    found: Adoptable,
    *,
    renew_before: int,
) -> None:
    """Make what an upstream has part of the repository, whatever was known before."""
    if found.entry is not None:
        name = str(found.digest)
        held = transaction.version("manifest", repository, name)
        if held is None or held[1] or held[0].wall_ms < renew_before:
            transaction.put("manifest", repository, name, found.entry)
        for blob in found.blobs:
            link(transaction, repository, blob, renew_before=renew_before)
    if tag is not None:
        transaction.put("tag", repository, tag, str(found.digest))


def confirm_tag(transaction: Transaction, repository: str, tag: str, digest: str | None) -> None:
    """Note what an upstream says of a tag now; None: that there is none."""
    transaction.put("tag", repository, tag, digest)


def link(transaction: Transaction, repository: str, digest: Digest, *, renew_before: int) -> None:
    """Make a blob part of the repository, or renew that it is."""
    written = transaction.linked_at(repository, str(digest))
    if written is None or written < renew_before:
        transaction.put("blob", repository, str(digest), "")


def mount(
    transaction: Transaction,
    repository: str,
    digest: Digest,
    source: str | None,
    *,
    renew_before: int,
) -> bool:
    """Link a blob if the source (None: any repository) has it; whether it has."""
    name = str(digest)
    if source is None:
        has = transaction.linked_anywhere(name)
    else:
        has = transaction.linked_at(source, name) is not None
    if has:
        link(transaction, repository, digest, renew_before=renew_before)
    return has


def rely(
    transaction: Transaction, pairs: Iterable[tuple[str, str]], *, renew_before: int
) -> list[bool]:
    """Whether repositories have blobs; the links of those that they have are renewed."""
    found = []
    for repository, digest in pairs:
        written = transaction.linked_at(repository, digest)
        found.append(written is not None)
        if written is not None and written < renew_before:
            transaction.put("blob", repository, digest, "")
    return found


def delete_tag(transaction: Transaction, repository: str, tag: str) -> bool:
    """Delete a tag; False: there is none."""
    if transaction.tag(repository, tag) is None:
        return False
    transaction.put("tag", repository, tag, None)
    return True


def delete_manifest(transaction: Transaction, repository: str, digest: Digest) -> bool:
    """Delete a manifest and every tag that points to it; False: there is neither."""
    name = str(digest)
    tags = transaction.tags_of(repository, name)
    if not tags and not transaction.has_manifest(repository, name):
        return False
    transaction.put("manifest", repository, name, None)
    for tag in tags:
        transaction.put("tag", repository, tag, None)
    return True


def delete_blob(transaction: Transaction, repository: str, digest: Digest) -> bool:
    """Take a blob out of the repository; False: it is not in it.

    Raises `Unsupported` while a manifest of the repository references it.
    """
    name = str(digest)
    if transaction.linked_at(repository, name) is None:
        return False
    users = transaction.referencing(repository, name, MAX_NAMED + 1)
    if users:
        more = " and more" if len(users) > MAX_NAMED else ""
        raise Unsupported(
            f"the blob {name} is part of {', '.join(users[:MAX_NAMED])}{more} in the repository "
            f"{repository}: delete those manifests first",
            detail={"digest": name, "manifests": users[:MAX_NAMED]},
        )
    transaction.put("blob", repository, name, None)
    return True


def collect(transaction: Transaction, condemned: Iterable[Condemned]) -> list[Condemned]:
    """Delete what garbage collection condemned and nobody has renewed or used since; gives that."""
    gone = []
    for one in condemned:
        kind, name = one.kind, (one.repository, one.name)
        if transaction.version(kind, *name) != (one.version_observed, False):
            continue
        if transaction.tags_of(*name):
            continue
        if kind == "blob" and transaction.referencing(*name, 1):
            continue
        transaction.put_at(one.tombstone(), kind, *name, None)
        gone.append(one)
    return gone


def _renew(transaction: Transaction, repository: str, digest: str, renew_before: int) -> None:
    """Write the link or the manifest record of a digest again when it is old."""
    written = transaction.linked_at(repository, digest)
    if written is not None and written < renew_before:
        transaction.put("blob", repository, digest, "")
    held = transaction.version("manifest", repository, digest)
    if held is not None and not held[1] and held[0].wall_ms < renew_before:
        record = transaction.record("manifest", repository, digest)
        if record is not None:
            transaction.put("manifest", repository, digest, record.value)
