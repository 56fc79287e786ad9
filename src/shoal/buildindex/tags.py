# SPDX-License-Identifier: Apache-2.0
"""Tags on local disk: one SQLite database, write-ahead logged and synced at every commit.

`TagDatabase` is blocking. `TagStore` is its asynchronous edge: writes that wait at the same time
become one transaction in one thread, reads have a thread and a connection of their own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shoal.buildindex.clock import Version
from shoal.buildindex.records import Changes, Page, TagRecord
from shoal.model.errors import Unavailable
from shoal.store.durable import fsync_dir

T = TypeVar("T")

SCHEMA_VERSION = 1
MAX_WAITING = 10_000
"""Writes that may wait for the disk before more of them are refused."""

_SCHEMA = """
CREATE TABLE tags (
    repository TEXT NOT NULL,
    tag        TEXT NOT NULL,
    digest     TEXT NOT NULL,
    wall_ms    INTEGER NOT NULL,
    counter    INTEGER NOT NULL,
    node       TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    PRIMARY KEY (repository, tag)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX tags_by_seq ON tags (seq);
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

_PUT = "INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?, ?, ?, ?)"

_GET = """
SELECT repository, tag, digest, wall_ms, counter, node FROM tags WHERE repository = ? AND tag = ?
"""

_CHANGES = """
SELECT repository, tag, digest, wall_ms, counter, node, seq FROM tags WHERE seq > ?
ORDER BY seq LIMIT ?
"""

# One step of a loose index scan per repository, however many tags each of them has.
_REPOSITORIES = """
WITH RECURSIVE found (name) AS (
    SELECT min(repository) FROM tags WHERE repository > ?
    UNION ALL
    SELECT (SELECT min(repository) FROM tags WHERE repository > found.name)
    FROM found WHERE found.name IS NOT NULL
)
SELECT name FROM found WHERE name IS NOT NULL LIMIT ?
"""


class TagDatabaseUnusable(Exception):
    """Another process has the data directory, a newer Shoal wrote it, or it is damaged."""


class TagDatabase:
    """The database of one build-index. Blocking; each connection stays in one thread.

    `node` is its id, made with the database: a build-index whose database is new is another node.
    """

    def __init__(self, data_dir: Path) -> None:
        """Open the database, or make it; raises `TagDatabaseUnusable`."""
        data_dir.mkdir(parents=True, exist_ok=True)
        self.path = data_dir / "tags.sqlite"
        with ExitStack() as opened:
            lock = _lock(data_dir / "lock")
            opened.callback(os.close, lock)
            try:
                self._writing = opened.enter_context(closing(_connect(self.path)))
                self._writing.execute("PRAGMA journal_mode = WAL")
                self._writing.execute("PRAGMA synchronous = FULL")
                self.node = self._prepare()
                self._seq: int = self._one(self._writing, "SELECT coalesce(max(seq), 0) FROM tags")
                self._reading = opened.enter_context(closing(_connect(self.path)))
                self._reading.execute("PRAGMA query_only = ON")
            except sqlite3.Error as error:
                raise TagDatabaseUnusable(f"cannot open {self.path}: {error}") from error
            fsync_dir(data_dir)
            self._opened = opened.pop_all()

    def _prepare(self) -> str:
        version: int = self._one(self._writing, "PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise TagDatabaseUnusable(
                f"{self.path} was written by a newer Shoal (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): run that one, or point data_dir elsewhere"
            )
        if version == 0:
            self._writing.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
            self._writing.execute("INSERT INTO facts VALUES ('node', ?)", (secrets.token_hex(8),))
            self._writing.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._writing.execute("COMMIT")
        return str(self._one(self._writing, "SELECT value FROM facts WHERE name = 'node'"))

    # Writes: in the writing thread.

    def apply(self, records: Sequence[TagRecord]) -> list[bool]:
        """Keep each record that is newer than what is here, in one transaction; say which were.

        Durable on return: the log is synced. On any error nothing of it is kept.
        """
        kept = []
        seq = self._seq
        self._writing.execute("BEGIN IMMEDIATE")
        try:
            for record in records:
                newer = record.newer_than(
                    self._record(self._writing, record.repository, record.tag)
                )
                kept.append(newer)
                if newer:
                    seq += 1
                    version = record.version
                    name = (record.repository, record.tag)
                    when = (version.wall_ms, version.counter, version.node)
                    self._writing.execute(_PUT, (*name, record.digest, *when, seq))
            self._writing.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise
        self._seq = seq
        return kept

    def set_cursor(self, neighbour: str, node: str, seq: int) -> None:
        """Remember up to where the changes of a neighbour have been taken."""
        self._writing.execute(
            "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (neighbour, node, seq)
        )

    def probe(self) -> None:
        """Make a small durable write; raises `sqlite3.Error` when the disk takes none."""
        self._writing.execute("INSERT OR REPLACE INTO facts VALUES ('probe', hex(randomblob(8)))")

    def _rollback(self) -> None:
        if self._writing.in_transaction:
            self._writing.execute("ROLLBACK")

    # Reads: in the reading thread.

    def get(self, repository: str, tag: str) -> TagRecord | None:
        """The tag's record."""
        return self._record(self._reading, repository, tag)

    def tags(self, repository: str, last: str, count: int) -> Page:
        """Up to `count` tags after `last`, in ASCII order."""
        rows = self._reading.execute(
            "SELECT tag FROM tags WHERE repository = ? AND tag > ? ORDER BY tag LIMIT ?",
            (repository, last, count + 1),
        ).fetchall()
        return _page(rows, count)

    def has_repository(self, repository: str) -> bool:
        """Whether the repository has a tag."""
        row = self._reading.execute(
            "SELECT 1 FROM tags WHERE repository = ? LIMIT 1", (repository,)
        ).fetchone()
        return row is not None

    def repositories(self, last: str, count: int) -> Page:
        """Up to `count` repositories after `last`, in ASCII order: those that have a tag."""
        return _page(self._reading.execute(_REPOSITORIES, (last, count + 1)).fetchall(), count)

    def changes(self, after: int, limit: int) -> Changes:
        """Up to `limit` records in the order in which they were taken, after a sequence number.

        A number beyond the last one comes from before this database was set back: all is given
        again.
        """
        newest: int = self._one(self._reading, "SELECT coalesce(max(seq), 0) FROM tags")
        if after > newest:
            after = 0
        rows = self._reading.execute(_CHANGES, (after, limit + 1)).fetchall()
        page = rows[:limit]
        records = [_from_row(row[:-1]) for row in page]
        seq = page[-1][-1] if page else after
        return Changes(self.node, records, seq, len(rows) > limit)

    def cursor(self, neighbour: str) -> tuple[str, int] | None:
        """The node that the neighbour was, and the sequence number up to which it was asked."""
        row = self._reading.execute(
            "SELECT node, seq FROM cursors WHERE neighbour = ?", (neighbour,)
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def newest_version(self) -> Version | None:
        """The latest version of all tags."""
        row = self._reading.execute(
            "SELECT wall_ms, counter, node FROM tags ORDER BY wall_ms DESC, counter DESC LIMIT 1"
        ).fetchone()
        return None if row is None else Version(*row)

    def close(self) -> None:
        """Close both connections and let go of the data directory."""
        self._opened.close()

    @staticmethod
    def _record(connection: sqlite3.Connection, repository: str, tag: str) -> TagRecord | None:
        row = connection.execute(_GET, (repository, tag)).fetchone()
        return None if row is None else _from_row(row)

    @staticmethod
    def _one(connection: sqlite3.Connection, statement: str) -> Any:
        return connection.execute(statement).fetchone()[0]


class TagStore:
    """The asynchronous edge of a `TagDatabase`."""

    def __init__(self, database: TagDatabase) -> None:
        self._database = database
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="tags-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tags-read")
        self._waiting: list[tuple[Sequence[TagRecord], asyncio.Future[list[bool]]]] = []
        self._committing: asyncio.Task[None] | None = None

    @property
    def node(self) -> str:
        """The id of this build-index."""
        return self._database.node

    async def apply(self, records: Sequence[TagRecord]) -> list[bool]:
        """As `TagDatabase.apply`; raises `Unavailable` when the disk does not take it."""
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable(
                f"{MAX_WAITING} tag writes are waiting for {self._database.path}; try again"
            )
        done: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit(), name="tags-commit")
        return await done

    async def _commit(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            records = [record for wanted, _ in batch for record in wanted]
            try:
                kept = await self._write(partial(self._database.apply, records))
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for wanted, done in batch:
                if not done.done():
                    done.set_result(kept[: len(wanted)])
                del kept[: len(wanted)]
        self._committing = None

    async def set_cursor(self, neighbour: str, node: str, seq: int) -> None:
        """As `TagDatabase.set_cursor`."""
        await self._write(lambda: self._database.set_cursor(neighbour, node, seq))

    async def probe(self) -> None:
        """As `TagDatabase.probe`; raises `Unavailable`."""
        await self._write(self._database.probe)

    async def get(self, repository: str, tag: str) -> TagRecord | None:
        """As `TagDatabase.get`."""
        return await self._read(lambda: self._database.get(repository, tag))

    async def tags(self, repository: str, last: str, count: int) -> Page | None:
        """A page of the repository's tags; None when it has no tag at all."""

        def read() -> Page | None:
            page = self._database.tags(repository, last, count)
            return page if page.names or self._database.has_repository(repository) else None

        return await self._read(read)

    async def repositories(self, last: str, count: int) -> Page:
        """As `TagDatabase.repositories`."""
        return await self._read(lambda: self._database.repositories(last, count))

    async def changes(self, after: int, limit: int) -> Changes:
        """As `TagDatabase.changes`."""
        return await self._read(lambda: self._database.changes(after, limit))

    async def cursor(self, neighbour: str) -> tuple[str, int] | None:
        """As `TagDatabase.cursor`."""
        return await self._read(lambda: self._database.cursor(neighbour))

    async def newest_version(self) -> Version | None:
        """As `TagDatabase.newest_version`."""
        return await self._read(self._database.newest_version)

    async def close(self) -> None:
        """Finish what is waiting, then close the database."""
        if self._committing is not None:
            await self._committing
        self._writer.shutdown()
        self._reader.shutdown()
        self._database.close()

    async def _write(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._writer, work)
        except sqlite3.Error as error:
            raise Unavailable(
                f"could not write to {self._database.path}: {error}; the tag is as it was"
            ) from error

    async def _read(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reader, work)
        except sqlite3.Error as error:
            raise Unavailable(f"could not read {self._database.path}: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)


def _lock(path: Path) -> int:
    """Hold the data directory: two processes that share a node id would make equal versions."""
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise TagDatabaseUnusable(
            f"another build-index runs on {path.parent}: stop it, or give this one a data_dir "
            "of its own"
        ) from error
    return held


def _from_row(row: Sequence[Any]) -> TagRecord:
    repository, tag, digest, wall_ms, counter, node = row
    return TagRecord(repository, tag, digest, Version(wall_ms, counter, node))


def _page(rows: list[Any], count: int) -> Page:
    return Page([row[0] for row in rows[:count]], len(rows) > count)
