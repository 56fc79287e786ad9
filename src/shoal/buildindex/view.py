# SPDX-License-Identifier: Apache-2.0
"""What can be read of a build-index's database, on any connection. Blocking."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from shoal.buildindex.clock import Version
from shoal.buildindex.garbage import Contents, LiveLink, LiveManifest
from shoal.buildindex.records import (
    MAX_BATCH_BYTES,
    Changes,
    Kind,
    ManifestEntry,
    Page,
    Record,
    ReferrerEntry,
    ReferrersPage,
    decoded_value,
)
from shoal.model.digest import Digest
from shoal.model.manifest import FoundManifest

MAX_REFERRERS_BYTES = 2 * 1024 * 1024
"""A page of referrers ends when what is known of them has this many bytes."""

FALLBACK_HEX = 64
"""Characters of the hex form in a fallback tag (distribution-spec, "Referrers Tag Schema")."""

_COLUMNS = "kind, repository, name, value, wall_ms, counter, node"

_RECORD = f"SELECT {_COLUMNS} FROM records WHERE kind = ? AND repository = ? AND name = ?"  # noqa: S608 - a constant

_POINTING = f"""
SELECT {_COLUMNS} FROM records WHERE kind = 'tag' AND repository = ? AND value = ?
"""  # noqa: S608 - a constant

_VERSION = """
SELECT wall_ms, counter, node, value IS NULL FROM records
WHERE kind = ? AND repository = ? AND name = ?
"""

_CHANGES = f"SELECT {_COLUMNS}, seq FROM records WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - a constant


def _repositories(*sources: str) -> str:
    """The names in some tables: one step of a loose index scan per name, however many rows it has.

    A source is a table and a condition.
    """
    first, following = (
        " UNION ALL ".join(
            f"SELECT min(repository) AS name FROM {source} AND repository > {last}"  # noqa: S608 - constants
            for source in sources
        )
        for last in (":last", "found.name")
    )
    return f"""
WITH RECURSIVE found (name) AS (
    SELECT min(name) FROM ({first})
    UNION ALL
    SELECT (SELECT min(name) FROM ({following})) FROM found WHERE found.name IS NOT NULL
)
SELECT name FROM found WHERE name IS NOT NULL LIMIT :count
"""  # noqa: S608 - constants


_LISTED = _repositories("tags WHERE true", "manifests WHERE true")
_COLLECTED = _repositories("records WHERE kind = 'blob'", "manifests WHERE true")

_FOUND_BY_DIGEST = """
SELECT digest, media_type, size FROM manifests WHERE repository = ? AND digest = ?
"""

_FOUND_BY_TAG = """
SELECT t.digest, coalesce(m.media_type, ''), coalesce(m.size, 0) FROM tags t
LEFT JOIN manifests m ON m.repository = t.repository AND m.digest = t.digest
WHERE t.repository = ? AND t.tag = ?
"""

_LINK = """
SELECT wall_ms FROM records
WHERE kind = 'blob' AND repository = ? AND name = ? AND value IS NOT NULL
"""

_PARTS = """
SELECT r.target, m.digest IS NOT NULL FROM refs r
LEFT JOIN manifests m ON m.repository = r.repository AND m.digest = r.target
WHERE r.repository = ? AND r.manifest = ?
"""

_LINKED_ANYWHERE = """
SELECT 1 FROM records WHERE kind = 'blob' AND value IS NOT NULL AND name = ? LIMIT 1
"""

_WANTED = """
SELECT EXISTS (SELECT 1 FROM records WHERE kind = 'blob' AND value IS NOT NULL AND name = :digest)
OR EXISTS (SELECT 1 FROM manifests WHERE digest = :digest)
OR EXISTS (SELECT 1 FROM tags WHERE digest = :digest)
OR EXISTS (SELECT 1 FROM refs WHERE target = :digest)
"""

_MENTIONS = """
SELECT (SELECT count(*) FROM records WHERE kind = 'blob' AND value IS NOT NULL AND name = :digest)
+ (SELECT count(*) FROM manifests WHERE digest = :digest)
+ (SELECT count(*) FROM tags WHERE digest = :digest)
+ (SELECT count(*) FROM refs WHERE target = :digest)
"""

# Those that name the subject, and those that an older client listed under the fallback tag. The
# order in which tables are read is given: a repository may have very many manifests.
_REFERRERS = """
SELECT digest, media_type, size, artifact_type FROM manifests INDEXED BY referrers
WHERE repository = :repository AND subject = :subject AND digest > :last
AND (:type IS NULL OR artifact_type = :type)
UNION
SELECT m.digest, m.media_type, m.size, m.artifact_type FROM tags t
CROSS JOIN refs r ON r.repository = t.repository AND r.manifest = t.digest
CROSS JOIN manifests m ON m.repository = r.repository AND m.digest = r.target
WHERE t.repository = :repository AND t.tag = :fallback AND r.target > :last
AND (:type IS NULL OR m.artifact_type = :type)
ORDER BY digest LIMIT :count
"""


class View:
    """Reads on one connection; used in one thread."""

    def __init__(self, connection: sqlite3.Connection, node: str) -> None:
        self._connection = connection
        self.node = node
        """The id of the build-index whose records these are."""

    # -- records and their log ----------------------------------------------------------------

    def record(self, kind: Kind, repository: str, name: str) -> Record | None:
        """The newest write of a name, be it a deletion."""
        row = self._row(_RECORD, (kind, repository, name))
        return None if row is None else _from_row(row)

    def version(self, kind: Kind, repository: str, name: str) -> tuple[Version, bool] | None:
        """The version of the newest write of a name, and whether that was a deletion."""
        row = self._row(_VERSION, (kind, repository, name))
        return None if row is None else (Version(*row[:3]), bool(row[3]))

    def changes(self, after: int, limit: int) -> Changes:
        """Up to `limit` records in the order in which they were taken, after a sequence number.

        Fewer where they are large. A number beyond the last one comes from before this database was
        set back: all is given again.
        """
        newest: int = self._one(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'records'"
        )
        seq = after if after <= newest else 0
        records: list[Record] = []
        size = 0
        for *columns, number in self._connection.execute(_CHANGES, (seq, limit + 1)):
            size += len(columns[3] or "")
            if len(records) == limit or (records and size > MAX_BATCH_BYTES):
                return Changes(self.node, records, seq, more=True)
            records.append(_from_row(columns))
            seq = number
        return Changes(self.node, records, seq, more=False)

    def cursor(self, neighbour: str) -> tuple[str, int] | None:
        """The node that the neighbour was, and the sequence number up to which it was asked."""
        row = self._row("SELECT node, seq FROM cursors WHERE neighbour = ?", (neighbour,))
        return None if row is None else (row[0], row[1])

    def stored_value(self, kind: Kind, repository: str, name: str) -> tuple[bool, str | None]:
        """Whether there is a record of the name, and what a backend should hold under it.

        That is the text of a digest; None: nothing, it was deleted.
        """
        if kind == "tag":
            digest = self.tag(repository, name)
        elif kind == "manifest":
            digest = name if self.has_manifest(repository, name) else None
        else:
            digest = None if self.linked_at(repository, name) is None else name
        return self.version(kind, repository, name) is not None, digest

    def pointing(self, repository: str, digest: str) -> list[Record]:
        """The writes of tags that point to a digest, also where its deletion hides them."""
        return [_from_row(row) for row in self._connection.execute(_POINTING, (repository, digest))]

    def parts(
        self, repository: str, manifest: str
    ) -> list[tuple[str, Literal["blob", "manifest"]]]:
        """What a manifest references and the repository has, each with the kind of its record."""
        return [
            (digest, "manifest" if is_manifest else "blob")
            for digest, is_manifest in self._connection.execute(_PARTS, (repository, manifest))
            if is_manifest or self.linked_at(repository, digest) is not None
        ]

    # -- lists --------------------------------------------------------------------------------

    def tags(self, repository: str, last: str, count: int) -> Page | None:
        """Up to `count` live tags after `last`, in ASCII order; None: no such repository."""
        page = self._page(
            "SELECT tag FROM tags WHERE repository = ? AND tag > ? ORDER BY tag LIMIT ?",
            (repository, last, count + 1),
            count,
        )
        return page if page.names or self._has_repository(repository) else None

    def repositories(self, last: str, count: int) -> Page:
        """Up to `count` repositories after `last`, in ASCII order.

        A repository is one that has a live tag or a live manifest.
        """
        return self._page(_LISTED, {"last": last, "count": count + 1}, count)

    def referrers(
        self, repository: str, subject: Digest, artifact_type: str | None, last: str, count: int
    ) -> ReferrersPage:
        """Up to `count` referrers of a manifest after `last`, sorted by digest."""
        wanted = {
            "repository": repository,
            "subject": str(subject),
            "fallback": f"{subject.algorithm}-{subject.hex[:FALLBACK_HEX]}",
            "type": artifact_type,
            "last": last,
            "count": count + 1,
        }
        entries: list[ReferrerEntry] = []
        size = 0
        rows = self._connection.execute(_REFERRERS, wanted).fetchall()
        for digest, media_type, bytes_, kind in rows:
            if len(entries) == count or size > MAX_REFERRERS_BYTES:
                return ReferrersPage(entries, more=True)
            row = self._row(_RECORD, ("manifest", repository, digest))
            entry = None if row is None else _from_row(row).value
            annotations = entry.annotations if isinstance(entry, ManifestEntry) else {}
            size += 0 if row is None else len(row[3])
            entries.append(ReferrerEntry(digest, media_type, bytes_, kind, annotations))
        return ReferrersPage(entries, more=False)

    # -- membership ---------------------------------------------------------------------------

    def tag(self, repository: str, tag: str) -> str | None:
        """The digest that a live tag points to."""
        row = self._row(
            "SELECT digest FROM tags WHERE repository = ? AND tag = ?", (repository, tag)
        )
        return None if row is None else str(row[0])

    def tags_of(self, repository: str, digest: str) -> list[str]:
        """The live tags of the repository that point to a digest."""
        rows = self._connection.execute(
            "SELECT tag FROM tags WHERE digest = ? AND repository = ?", (digest, repository)
        )
        return [row[0] for row in rows]

    def find_manifest(self, repository: str, reference: str) -> FoundManifest | None:
        """The live manifest that a digest or a live tag of the repository stands for.

        A tag may point to something that has no manifest record: it then has no type and no size.
        """
        statement = _FOUND_BY_DIGEST if ":" in reference else _FOUND_BY_TAG
        row = self._row(statement, (repository, reference))
        return None if row is None else FoundManifest(Digest.parse(row[0]), row[1], row[2])

    def has_manifest(self, repository: str, digest: str) -> bool:
        """Whether the repository has a live record of the manifest."""
        return self._row(_FOUND_BY_DIGEST, (repository, digest)) is not None

    def linked_at(self, repository: str, digest: str) -> int | None:
        """When the live link of a blob was written last (ms); None: it is not in the repository."""
        row = self._row(_LINK, (repository, digest))
        return None if row is None else int(row[0])

    def linked_anywhere(self, digest: str) -> bool:
        """Whether any repository has a live link of the blob."""
        return self._row(_LINKED_ANYWHERE, (digest,)) is not None

    def absent(
        self, repository: str, blobs: Iterable[Digest], manifests: Iterable[Digest]
    ) -> set[Digest]:
        """Those of the blobs and manifests that are not in the repository."""
        missing = {blob for blob in blobs if self.linked_at(repository, str(blob)) is None}
        missing.update(m for m in manifests if not self.has_manifest(repository, str(m)))
        return missing

    def referencing(self, repository: str, digest: str, limit: int) -> list[str]:
        """Up to `limit` live manifests of the repository that reference a digest."""
        rows = self._connection.execute(
            "SELECT manifest FROM refs WHERE target = ? AND repository = ? LIMIT ?",
            (digest, repository, limit),
        )
        return [row[0] for row in rows]

    def wanted(self, digests: Collection[str]) -> list[str]:
        """Those that a live tag, link, or manifest of any repository is or references."""
        return [
            digest
            for digest in digests
            if self._connection.execute(_WANTED, {"digest": digest}).fetchone()[0]
        ]

    def mentions(self, digests: Iterable[str]) -> dict[str, int]:
        """How many live tags, links and manifests of any repository are or reference each."""
        return {digest: self._row(_MENTIONS, {"digest": digest})[0] for digest in digests}

    def contents(self, repository: str) -> Contents:
        """All live records of a repository; of one moment when read in a transaction."""
        tags = self._connection.execute(
            "SELECT tag, digest FROM tags WHERE repository = ?", (repository,)
        ).fetchall()
        references: dict[str, list[str]] = {}
        for manifest, target in self._connection.execute(
            "SELECT manifest, target FROM refs WHERE repository = ?", (repository,)
        ):
            references.setdefault(manifest, []).append(target)
        manifests = [
            LiveManifest(
                digest, Version(*version), size, tuple(references.get(digest, ())), subject
            )
            for digest, size, subject, *version in self._connection.execute(
                "SELECT m.digest, m.size, m.subject, r.wall_ms, r.counter, r.node FROM manifests m "
                "JOIN records r ON r.kind = 'manifest' AND r.repository = m.repository "
                "AND r.name = m.digest WHERE m.repository = ?",
                (repository,),
            )
        ]
        links = [
            LiveLink(digest, Version(*version))
            for digest, *version in self._connection.execute(
                "SELECT name, wall_ms, counter, node FROM records "
                "WHERE kind = 'blob' AND repository = ? AND value IS NOT NULL",
                (repository,),
            )
        ]
        return Contents(repository, dict(tags), manifests, links)

    def collected(self, last: str, count: int) -> Page:
        """Up to `count` repositories after `last` that may hold something to collect."""
        return self._page(_COLLECTED, {"last": last, "count": count + 1}, count)

    # -- rows ---------------------------------------------------------------------------------

    def _has_repository(self, repository: str) -> bool:
        row = self._row(
            "SELECT 1 FROM tags WHERE repository = :r "
            "UNION ALL SELECT 1 FROM manifests WHERE repository = :r LIMIT 1",
            {"r": repository},
        )
        return row is not None

    def _row(self, statement: str, parameters: Sequence[Any] | dict[str, Any]) -> Any:
        return self._connection.execute(statement, parameters).fetchone()

    def _one(self, statement: str) -> Any:
        return self._connection.execute(statement).fetchone()[0]

    def _page(self, statement: str, parameters: Sequence[Any] | dict[str, Any], count: int) -> Page:
        rows = self._connection.execute(statement, parameters).fetchall()
        return Page([row[0] for row in rows[:count]], len(rows) > count)


def _from_row(row: Sequence[Any]) -> Record:
    kind, repository, name, value, *version = row
    return Record(kind, repository, name, decoded_value(kind, value), Version(*version))
