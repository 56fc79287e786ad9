# SPDX-License-Identifier: Apache-2.0
"""The tables of a build-index.

`records` is the truth: one row per name, the newest write of it. Its key `seq` is also the change
log: a write takes the next number, so that what neighbours have not seen is a range of the table.
No number is given twice (AUTOINCREMENT), also when the newest record is a tombstone and is purged.
The other tables are made of it, and change in the same transaction:

* `tags`: the live tags, those of the view `live_tags`;
* `manifests`: the live manifest records, without what is large;
* `refs`: what the live manifests reference.
"""

from __future__ import annotations

SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE records (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    kind       TEXT NOT NULL,
    repository TEXT NOT NULL,
    name       TEXT NOT NULL,
    wall_ms    INTEGER NOT NULL,
    counter    INTEGER NOT NULL,
    node       TEXT NOT NULL,
    value      TEXT
) STRICT;
CREATE UNIQUE INDEX records_by_name ON records (kind, repository, name);
CREATE INDEX tags_by_value ON records (repository, value)
    WHERE kind = 'tag' AND value IS NOT NULL;
CREATE INDEX links_by_digest ON records (name, repository)
    WHERE kind = 'blob' AND value IS NOT NULL;
CREATE INDEX tombstones ON records (wall_ms) WHERE value IS NULL;

CREATE TABLE tags (
    repository TEXT NOT NULL,
    tag        TEXT NOT NULL,
    digest     TEXT NOT NULL,
    PRIMARY KEY (repository, tag)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_by_digest ON tags (digest, repository, tag);

-- A tag is live when it has a digest and its manifest was not deleted after it was written. It may
-- point to something that has no manifest record at all.
CREATE VIEW live_tags AS
SELECT t.repository, t.name AS tag, t.value AS digest FROM records t
WHERE t.kind = 'tag' AND t.value IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM records m
    WHERE m.kind = 'manifest' AND m.repository = t.repository AND m.name = t.value
    AND m.value IS NULL
    AND (m.wall_ms, m.counter, m.node) > (t.wall_ms, t.counter, t.node)
);

CREATE TABLE manifests (
    repository    TEXT NOT NULL,
    digest        TEXT NOT NULL,
    media_type    TEXT NOT NULL,
    size          INTEGER NOT NULL,
    subject       TEXT,
    artifact_type TEXT NOT NULL,
    PRIMARY KEY (repository, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX manifests_by_digest ON manifests (digest);
CREATE INDEX referrers ON manifests (repository, subject, digest) WHERE subject IS NOT NULL;

CREATE TABLE refs (
    repository TEXT NOT NULL,
    manifest   TEXT NOT NULL,
    target     TEXT NOT NULL,
    PRIMARY KEY (repository, manifest, target)
) STRICT, WITHOUT ROWID;
CREATE INDEX refs_by_target ON refs (target, repository);

CREATE TABLE cursors (
    neighbour TEXT PRIMARY KEY,
    node      TEXT NOT NULL,
    seq       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE facts (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""
