# SPDX-License-Identifier: Apache-2.0
"""What of a repository nothing reaches any more: the mark phase of garbage collection. Pure.

A repository is looked at on its own: what belongs to it is decided by its own records. The blobs
themselves are swept later, by the origins, once no repository has a record of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import msgspec

from shoal.buildindex.clock import Version

MAX_LISTED = 1_000
"""Condemned records that a report names; its totals count all of them."""

MAX_RELEASED = 50_000
"""Released digests that a report names."""

Untagged = Literal["keep", "remove"]
"""What becomes of manifests that no tag reaches: ``keep``, they are pinned by their digest;
``remove``, they go when they are older than the grace time."""

Kind = Literal["manifest", "blob"]
"""Kind of the record: that a manifest belongs to the repository, or that a blob does."""


@dataclass(frozen=True, slots=True)
class LiveManifest:
    """A manifest record that is not deleted."""

    digest: str
    version: Version
    size: int
    """Of the manifest itself, in bytes."""

    references: tuple[str, ...] = ()
    """Digests of config, layers and children."""

    subject: str | None = None
    """Digest of the manifest that this one says something about."""


@dataclass(frozen=True, slots=True)
class LiveLink:
    """A blob link that is not deleted."""

    digest: str
    version: Version


@dataclass(frozen=True, slots=True)
class Contents:
    """All live records of one repository, read at one moment."""

    repository: str
    tags: Mapping[str, str] = field(default_factory=dict)
    """Digest by tag."""

    manifests: Sequence[LiveManifest] = ()
    links: Sequence[LiveLink] = ()


@dataclass(frozen=True, slots=True)
class Condemned:
    """A record that is to be deleted."""

    kind: Kind
    repository: str
    name: str
    """The digest."""

    why: str
    version_observed: Version
    """The version that was judged. A newer one was not, and must not be deleted for it."""

    size: int | None = None
    """Bytes, where the record knows them."""

    def tombstone(self) -> Version:
        """The version of the deletion: just after what was judged, so that any renewal wins."""
        seen = self.version_observed
        if seen.counter < 2**31 - 1:
            return Version(seen.wall_ms, seen.counter + 1, seen.node)
        return Version(seen.wall_ms + 1, 0, seen.node)


def mark(contents: Contents, *, now: float, grace: float, untagged: Untagged) -> list[Condemned]:
    """What of the repository is to be deleted; manifests first, each kind in the order given.

    `now` in epoch seconds, `grace` in seconds: what was written or renewed within it stays, and so
    does all that it reaches. Takes time linear in the records and their references.
    """
    cutoff = round((now - grace) * 1000)
    reached = _reached(contents, cutoff, untagged)
    condemned = [
        Condemned(
            "manifest",
            contents.repository,
            manifest.digest,
            _why_untagged(manifest, reached),
            manifest.version,
            manifest.size,
        )
        for manifest in contents.manifests
        if manifest.digest not in reached and _is_old(manifest.version, cutoff)
    ]
    gone = {manifest.name for manifest in condemned}
    needed = set(contents.tags.values())
    for manifest in contents.manifests:
        if manifest.digest not in gone:
            needed.update(manifest.references)
    condemned += [
        Condemned(
            "blob",
            contents.repository,
            link.digest,
            "no manifest of the repository references this blob",
            link.version,
        )
        for link in contents.links
        if link.digest not in needed and _is_old(link.version, cutoff)
    ]
    return condemned


def _reached(contents: Contents, cutoff: int, untagged: Untagged) -> set[str]:
    """Manifests that are reached from those that stay in any case. Each is visited once.

    `cutoff`: versions (wall time, ms) before this one are old enough to go.
    """
    manifests = {manifest.digest: manifest for manifest in contents.manifests}
    if untagged == "keep":
        return set(manifests)
    referrers: dict[str, list[str]] = {}
    for manifest in contents.manifests:
        if manifest.subject is not None:
            referrers.setdefault(manifest.subject, []).append(manifest.digest)
    # What is young may be an index whose tag is about to come: it keeps its children, too.
    waiting = [digest for digest in contents.tags.values() if digest in manifests]
    waiting += [m.digest for m in contents.manifests if not _is_old(m.version, cutoff)]
    reached = set(waiting)
    while waiting:
        digest = waiting.pop()
        for other in (*manifests[digest].references, *referrers.get(digest, ())):
            if other in manifests and other not in reached:
                reached.add(other)
                waiting.append(other)
    return reached


def _is_old(version: Version, cutoff: int) -> bool:
    """Whether a record may go when nothing here needs it.

    What was found in a backend stays: there may be tags and manifests in the backend that need it,
    and that nobody has asked for yet.
    """
    return not version.adopted and version.wall_ms < cutoff


def _why_untagged(manifest: LiveManifest, reached: set[str]) -> str:
    if manifest.subject is None or manifest.subject in reached:
        return "no tag, index or referrer relation reaches this manifest"
    return f"no tag or index reaches this manifest, nor its subject {manifest.subject}"


class Doomed(msgspec.Struct, frozen=True):
    """One line of a report: what went, or would go, and why."""

    kind: Kind
    repository: str
    name: str
    why: str
    size: int | None = None


class GcReport(msgspec.Struct, frozen=True):
    """What one run of the mark phase looked at and deleted (or, as a dry run, would delete)."""

    dry_run: bool
    repositories: int
    manifests: int
    """Live manifest records that were looked at."""

    links: int
    """Live blob links that were looked at."""

    condemned_manifests: int
    condemned_links: int
    items: list[Doomed]
    """The first of them, at most `MAX_LISTED`; the counts are of all."""

    released: list[str] = []
    """Of a dry run: digests of which no repository would have a record any more, at most
    `MAX_RELEASED`. An origin that is told of them knows what its own sweep would remove."""


class Tally:
    """Adds up a run, repository by repository, in bounded memory."""

    def __init__(self) -> None:
        self._repositories = 0
        self._looked_at = {"manifest": 0, "blob": 0}
        self._condemned = {"manifest": 0, "blob": 0}
        self._items: list[Doomed] = []
        self.mentions: Counter[str] = Counter()
        """By digest: condemned records of it, and references to it in condemned manifests."""

    def add(self, contents: Contents, condemned: Iterable[Condemned]) -> None:
        """Count one repository, and what of it was condemned."""
        self._repositories += 1
        self._looked_at["manifest"] += len(contents.manifests)
        self._looked_at["blob"] += len(contents.links)
        manifests = {manifest.digest: manifest for manifest in contents.manifests}
        for one in condemned:
            self._condemned[one.kind] += 1
            self.mentions[one.name] += 1
            if one.kind == "manifest":
                self.mentions.update(set(manifests[one.name].references))
            if len(self._items) < MAX_LISTED:
                self._items.append(Doomed(one.kind, one.repository, one.name, one.why, one.size))

    def released(self, live: Mapping[str, int]) -> list[str]:
        """Digests that nothing mentions once what was added is deleted, at most `MAX_RELEASED`.

        `live`: for each digest of `mentions`, the live links, manifest records and tags of it and
        the references to it in live manifests, of all repositories together, before any deletion.
        """
        free = (digest for digest, count in self.mentions.items() if live[digest] <= count)
        return list(islice(free, MAX_RELEASED))

    def report(self, *, dry_run: bool, released: Sequence[str] = ()) -> GcReport:
        """The report of what was added; `released` of a dry run."""
        return GcReport(
            dry_run,
            self._repositories,
            self._looked_at["manifest"],
            self._looked_at["blob"],
            self._condemned["manifest"],
            self._condemned["blob"],
            self._items,
            list(released),
        )
