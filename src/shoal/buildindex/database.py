# SPDX-License-Identifier: Apache-2.0
"""The records of one build-index on local disk: an SQLite database, synced at every commit.

Blocking: `shoal.buildindex.store` is its asynchronous edge.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.buildindex.clock import HybridClock, Version
from shoal.buildindex.records import Kind, ManifestEntry, Record, encoded_value
from shoal.buildindex.schema import SCHEMA, SCHEMA_VERSION
from shoal.buildindex.view import View
from shoal.model.errors import ApiError
from shoal.store.durable import fsync_dir

FILE = "tags.sqlite"
"""Named as it was when it held tags only: such a database is found, and refused."""

PURGE_STEP = 1_000
"""Tombstones that one transaction removes for good."""


class DatabaseUnusable(Exception):
    """Another process has the data directory, another Shoal wrote it, or it is damaged."""


class Refused(Exception):
    """A write does not hold with what is in the database now; nothing of it is kept."""


class Transaction(View):
    """One write: what it reads is what it changes, and nobody else writes in between."""

    def __init__(self, connection: sqlite3.Connection, clock: HybridClock, wall_ms: int) -> None:
        super().__init__(connection, clock.node)
        self._clock = clock
        self._now: Version | None = None
        self.wall_ms = wall_ms
        """Wall time in ms."""

        self.written: list[Record] = []
        """What `put` wrote, for the neighbours."""

    def put(
        self, kind: Kind, repository: str, name: str, value: str | ManifestEntry | None
    ) -> Record:
        """Write a name; the version is that of the whole operation, newer than all known here."""
        if self._now is None:
            self._now = self._clock.tick(self.wall_ms)
        return self.put_at(self._now, kind, repository, name, value)

    def put_at(
        self,
        version: Version,
        kind: Kind,
        repository: str,
        name: str,
        value: str | ManifestEntry | None,
    ) -> Record:
        """Write a name with a version of its own."""
        record = Record(kind, repository, name, value, version)
        self.take(record)
        self.written.append(record)
        return record

    def take(self, record: Record) -> bool:
        """Keep a record, wherever it was written, if it is newer than what is here."""
        self._clock.observe(record.version)
        kind, repository, name = record.kind, record.repository, record.name
        held = self.version(kind, repository, name)
        if held is not None:
            if record.version < held[0]:
                return False
            if record.version == held[0] and not record.newer_than(
                self.record(kind, repository, name)
            ):
                return False
        version = record.version
        self._connection.execute(
            "INSERT OR REPLACE INTO records (kind, repository, name, wall_ms, counter, node, value)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                kind,
                repository,
                name,
                version.wall_ms,
                version.counter,
                version.node,
                encoded_value(record.value),
            ),
        )
        if kind == "tag":
            self._derive_tags("tag", repository, name)
        elif kind == "manifest":
            self._derive_manifest(record)
            if record.value is None or (held is not None and held[1]):
                self._derive_tags("digest", repository, name)
        return True

    def _derive_tags(self, column: str, repository: str, name: str) -> None:
        """Make a tag anew, or (column ``digest``) those that point to a manifest."""
        where = f"WHERE repository = ? AND {column} = ?"
        self._connection.execute(f"DELETE FROM tags {where}", (repository, name))  # noqa: S608 - constants
        self._connection.execute(
            f"INSERT INTO tags SELECT repository, tag, digest FROM live_tags {where}",  # noqa: S608 - constants
            (repository, name),
        )

    def _derive_manifest(self, record: Record) -> None:
        name = (record.repository, record.name)
        self._connection.execute("DELETE FROM manifests WHERE repository = ? AND digest = ?", name)
        self._connection.execute("DELETE FROM refs WHERE repository = ? AND manifest = ?", name)
        if not isinstance(record.value, ManifestEntry):
            return
        entry = record.value
        self._connection.execute(
            "INSERT INTO manifests VALUES (?, ?, ?, ?, ?, ?)",
            (*name, entry.media_type, entry.size, entry.subject, entry.artifact_type),
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO refs VALUES (?, ?, ?)",
            [(*name, target) for target in entry.references],
        )


Operation = Callable[[Transaction], Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one operation."""

    result: Any = None
    """What it returned."""

    written: Sequence[Record] = ()
    """The records that it made."""

    refused: Exception | None = None
    """Why nothing of it was kept."""


class Database:
    """The database of one build-index. Each connection stays in one thread at a time.

    `node` is its id, made with the database: a build-index whose database is new is another node.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Open the database, or make it; raises `DatabaseUnusable`."""
        data_dir.mkdir(parents=True, exist_ok=True)
        self.path = data_dir / FILE
        self._wall_ms = wall_ms
        with ExitStack() as opened:
            lock = _lock(data_dir / "lock")
            opened.callback(os.close, lock)
            try:
                self._writing = opened.enter_context(closing(_connect(self.path)))
                self._writing.execute("PRAGMA journal_mode = WAL")
                self._writing.execute("PRAGMA synchronous = FULL")
                self.node = self._prepare()
                self._clock = HybridClock(self.node, self._newest_version())
                reading = opened.enter_context(closing(_connect(self.path)))
                reading.execute("PRAGMA query_only = ON")
            except sqlite3.Error as error:
                raise DatabaseUnusable(f"cannot open {self.path}: {error}") from error
            self.view = View(reading, self.node)
            """What was committed, for one reading thread."""

            fsync_dir(data_dir)
            self._opened = opened.pop_all()

    def _prepare(self) -> str:
        version: int = self._one("PRAGMA user_version")
        if version not in (0, SCHEMA_VERSION):
            which = "a newer" if version > SCHEMA_VERSION else "an older, unreleased"
            raise DatabaseUnusable(
                f"{self.path} was written by {which} Shoal (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): run that one, or point data_dir elsewhere"
            )
        if version == 0:
            self._writing.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
            self._writing.execute("INSERT INTO facts VALUES ('node', ?)", (secrets.token_hex(8),))
            self._writing.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._writing.execute("COMMIT")
        return str(self._one("SELECT value FROM facts WHERE name = 'node'"))

    def _newest_version(self) -> Version | None:
        row = self._writing.execute(
            "SELECT wall_ms, counter, node FROM records ORDER BY wall_ms DESC, counter DESC LIMIT 1"
        ).fetchone()
        return None if row is None else Version(*row)

    # Writes: in the writing thread.

    def run(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Do each operation in its turn, all in one transaction.

        Durable on return: the log is synced. Of an operation that raises `Refused` or an `ApiError`
        nothing is kept; on any other error nothing of all is.
        """
        outcomes = []
        with self._transaction():
            for operation in operations:
                self._writing.execute("SAVEPOINT operation")
                step = Transaction(self._writing, self._clock, self._wall_ms())
                try:
                    outcomes.append(Outcome(operation(step), step.written))
                except (ApiError, Refused) as refused:
                    self._writing.execute("ROLLBACK TO operation")
                    outcomes.append(Outcome(refused=refused))
                self._writing.execute("RELEASE operation")
        return outcomes

    def purge(self, before_ms: int) -> int:
        """Remove up to `PURGE_STEP` tombstones from before a wall time for good; say how many.

        The tags that the deletion of a manifest hides go with it.
        """
        with self._transaction():
            old = self._writing.execute(
                "SELECT seq, kind, repository, name FROM records WHERE value IS NULL "
                "AND wall_ms < ? LIMIT ?",
                (before_ms, PURGE_STEP),
            ).fetchall()
            for seq, kind, repository, name in old:
                if kind == "manifest":
                    self._writing.execute(
                        "DELETE FROM records WHERE kind = 'tag' AND repository = ? AND value = ? "
                        "AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.repository = "
                        "records.repository AND t.tag = records.name)",
                        (repository, name),
                    )
                self._writing.execute("DELETE FROM records WHERE seq = ?", (seq,))
        return len(old)

    def set_cursor(self, neighbour: str, node: str, seq: int) -> None:
        """Remember up to where the changes of a neighbour have been taken."""
        self._writing.execute(
            "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (neighbour, node, seq)
        )

    def probe(self) -> None:
        """Make a small durable write; raises `sqlite3.Error` when the disk takes none."""
        self._writing.execute("INSERT OR REPLACE INTO facts VALUES ('probe', hex(randomblob(8)))")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writing.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writing.execute("COMMIT")
        except BaseException:
            if self._writing.in_transaction:
                self._writing.execute("ROLLBACK")
            raise

    # Reads: in any thread.

    @contextmanager
    def snapshot(self) -> Iterator[View]:
        """A view of one moment, for long reads; on a connection of its own."""
        with closing(_connect(self.path)) as connection:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            yield View(connection, self.node)

    def close(self) -> None:
        """Close the connections and let go of the data directory."""
        self._opened.close()

    def _one(self, statement: str) -> Any:
        return self._writing.execute(statement).fetchone()[0]


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)


def _lock(path: Path) -> int:
    """Hold the data directory: two processes that share a node id would make equal versions."""
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise DatabaseUnusable(
            f"another build-index runs on {path.parent}: stop it, or give this one a data_dir "
            "of its own"
        ) from error
    return held
