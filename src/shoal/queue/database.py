# SPDX-License-Identifier: Apache-2.0
"""The tasks of a queue in one SQLite file, write-ahead logged, synced at every commit. It blocks.

The service that works through the queue holds a lock beside the file. Anybody else (`shoal queue`)
may open the file at the same time: SQLite keeps transactions apart, and only the lock's holder
claims tasks.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from shoal.queue.tasks import State, Task
from shoal.store.durable import fsync_dir, make_dirs_durably

SCHEMA_VERSION: Final = 1

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another process's transaction."""

LOCK_TIMEOUT: Final = 1.0
"""Seconds to wait for the queue's lock."""

_SCHEMA = """
CREATE TABLE tasks (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    key       TEXT NOT NULL UNIQUE,
    payload   TEXT NOT NULL,
    state     TEXT NOT NULL,
    added     REAL NOT NULL,
    due       REAL NOT NULL,
    attempted REAL,
    failures  INTEGER NOT NULL DEFAULT 0,
    error     TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX tasks_by_due ON tasks (state, due, added);
"""

_COLUMNS = "id, key, payload, state, added, due, attempted, failures, error"

# A task that was given up or dropped begins anew when it is added again; one that waits or runs is
# the same work.
_ADD = """
INSERT INTO tasks (key, payload, state, added, due) VALUES (?, ?, 'waiting', ?, ?)
ON CONFLICT (key) DO UPDATE SET
    payload = excluded.payload, state = 'waiting', added = excluded.added, due = excluded.due,
    attempted = NULL, failures = 0, error = ''
WHERE state IN ('dead', 'dropped')
"""

_AGAIN = "UPDATE tasks SET payload = ? WHERE key = ? AND state = 'running'"

_SOONER = """
UPDATE tasks SET due = min(due, ?) WHERE key = ? AND state = 'waiting' AND failures = 0
"""

_ONCE_MORE = """
UPDATE tasks SET state = 'waiting', due = added, attempted = NULL, failures = 0, error = ''
WHERE id = ? AND state = 'running' AND payload != ?
"""

_CLAIM = f"""
UPDATE tasks SET state = 'running', attempted = ? WHERE id IN (
    SELECT id FROM tasks WHERE state = 'waiting' AND due <= ? ORDER BY due, id LIMIT ?
) RETURNING {_COLUMNS}
"""  # noqa: S608 -- nothing but a constant goes in

_DUE = "SELECT EXISTS (SELECT 1 FROM tasks WHERE state = 'waiting' AND due <= ?)"

_EXPEDITE = """
UPDATE tasks SET state = 'waiting', due = 0
WHERE key = ? AND state IN ('waiting', 'dead') AND due > 0
"""

_COUNTS = "SELECT state, count(*), min(added) FROM tasks GROUP BY state"


class QueueUnusable(Exception):
    """Another process works on the queue, a newer Shoal wrote it, or its file is damaged."""


@dataclass(frozen=True, slots=True)
class Count:
    """The tasks in one state: how many, and when the oldest was added."""

    tasks: int
    oldest: float


class QueueDatabase:
    """One queue's file. Used by one thread at a time.

    Every method that writes is to be called within `transact`, and is durable when that returns.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock

    @classmethod
    def open_to_work(cls, path: Path, *, latest_due: float) -> Self:
        """Open or make the queue and hold its lock; raises `QueueUnusable`, `OSError`.

        What a process that is gone was working on waits again. No task is left due later than
        `latest_due`, which is what a clock that was set back would do.
        """
        make_dirs_durably(path.parent)
        lock = _lock(path, within=LOCK_TIMEOUT)
        try:
            connection = _connect(path)
            try:
                database = cls(path, connection, lock)
                database._prepare(latest_due)
            except BaseException:
                connection.close()
                raise
            fsync_dir(path.parent)
        except sqlite3.Error as error:
            os.close(lock)
            raise QueueUnusable(f"cannot open the queue {path}: {error}") from error
        except BaseException:
            os.close(lock)
            raise
        return database

    @classmethod
    def open_beside(cls, path: Path) -> Self:
        """Open a queue that is there, to look and to decide; its service may be running.

        When it is not, what it was working on waits again. Raises `QueueUnusable`.
        """
        if not path.is_file():
            raise QueueUnusable(f"there is no queue at {path}")
        try:
            connection = _connect(path)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            raise QueueUnusable(f"cannot open the queue {path}: {error}") from error
        if version != SCHEMA_VERSION:
            connection.close()
            raise QueueUnusable(
                f"{path} has schema {version}, this Shoal knows {SCHEMA_VERSION}: "
                "use the Shoal that its service runs"
            )
        database = cls(path, connection, None)
        database._recover_if_idle()
        return database

    def _recover_if_idle(self) -> None:
        try:
            lock = _lock(self.path, within=0)
        except QueueUnusable:
            return  # its service runs
        try:
            self.transact([self._recover])
        finally:
            os.close(lock)

    def _recover(self) -> None:
        self._connection.execute("UPDATE tasks SET state = 'waiting' WHERE state = 'running'")

    def _prepare(self, latest_due: float) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise QueueUnusable(
                f"{self.path} was written by a newer Shoal (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): run that one"
            )
        if version == 0:
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
            )

        self.transact([self._recover, lambda: self.bring_forward(latest_due)])

    def transact(self, steps: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run steps in one transaction and return their results; on an error none has happened."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            results = [step() for step in steps]
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return results

    def close(self) -> None:
        """Close the file and let go of the lock."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- within transact ----------------------------------------------------------------------

    def add(self, key: str, payload: str, now: float, due: float | None = None) -> bool:
        """Have the task waiting, unless it is waiting or running already; whether it was not.

        Without `due` it is due at once.
        """
        row = (key, payload, now, now if due is None else due)
        return self._connection.execute(_ADD, row).rowcount > 0

    def add_again(self, key: str, payload: str, now: float, due: float) -> None:
        """Have the task waiting; one that runs is done once more if the payload is another one.

        One that waits for its first attempt waits no longer than to `due`.
        """
        self._connection.execute(_AGAIN, (payload, key))
        self._connection.execute(_SOONER, (due, key))
        self.add(key, payload, now, due)

    def bring_forward(self, latest_due: float) -> None:
        """Leave no task due later than that: the clock may have been set back."""
        self._connection.execute(
            "UPDATE tasks SET due = ? WHERE state = 'waiting' AND due > ?",
            (latest_due, latest_due),
        )

    def withdraw(self, keys: Iterable[str]) -> None:
        """Remove those that still wait for their first attempt."""
        self._connection.executemany(
            "DELETE FROM tasks WHERE key = ? AND state = 'waiting' AND attempted IS NULL",
            [(key,) for key in keys],
        )

    def claim(self, now: float, count: int) -> list[Task]:
        """Take up to `count` tasks that are due, the longest due first; they are running now."""
        rows = self._connection.execute(_CLAIM, (now, now, count)).fetchall()
        return sorted(map(_task, rows), key=lambda task: (task.due, task.id))

    def done(self, task: Task) -> bool:
        """Remove a task that ran; False: it was added again meanwhile, and waits."""
        self._connection.execute(_ONCE_MORE, (task.id, task.payload))
        gone = self._connection.execute(
            "DELETE FROM tasks WHERE id = ? AND state = 'running'", (task.id,)
        )
        return gone.rowcount > 0

    def put_back(self, task: Task) -> None:
        """Write what became of a task that ran and is not done."""
        self._connection.execute(
            "UPDATE tasks SET state = ?, due = ?, failures = ?, error = ? "
            "WHERE id = ? AND state = 'running'",
            (task.state, task.due, task.failures, task.error, task.id),
        )

    def expedite(self, keys: Iterable[str]) -> None:
        """Make those that wait, or are dead, due before all others."""
        self._connection.executemany(_EXPEDITE, [(key,) for key in keys])

    def remove_dropped(self) -> list[Task]:
        """Remove the tasks that were dropped and return them."""
        rows = self._connection.execute(
            f"DELETE FROM tasks WHERE state = 'dropped' RETURNING {_COLUMNS}"  # noqa: S608
        )
        return [_task(row) for row in rows.fetchall()]

    def retry(self, keys: Iterable[str], now: float) -> list[str]:
        """Make waiting and dead tasks due and their age 0; return the keys that there were."""
        changed = []
        for key in keys:
            cursor = self._connection.execute(
                "UPDATE tasks SET state = 'waiting', added = ?, due = 0 "
                "WHERE key = ? AND state IN ('waiting', 'dead')",
                (now, key),
            )
            if cursor.rowcount:
                changed.append(key)
        return changed

    def drop(self, keys: Iterable[str]) -> list[str]:
        """Mark waiting and dead tasks as dropped; return the keys that there were."""
        changed = []
        for key in keys:
            cursor = self._connection.execute(
                "UPDATE tasks SET state = 'dropped' WHERE key = ? AND state IN ('waiting', 'dead')",
                (key,),
            )
            if cursor.rowcount:
                changed.append(key)
        return changed

    def probe(self) -> None:
        """A small durable write; fails when the disk takes none."""
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    # -- reading ------------------------------------------------------------------------------

    def due(self, now: float) -> bool:
        """Whether a task waits to be claimed."""
        return bool(self._connection.execute(_DUE, (now,)).fetchone()[0])

    def next_due(self) -> float | None:
        """When the first of those that wait is due."""
        row = self._connection.execute("SELECT min(due) FROM tasks WHERE state = 'waiting'")
        due: float | None = row.fetchone()[0]
        return due

    def any_dropped(self) -> bool:
        """Whether a dropped task is still to be removed."""
        row = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM tasks WHERE state = 'dropped')"
        ).fetchone()
        return bool(row[0])

    def find(self, keys: Iterable[str]) -> list[Task]:
        """Those of the tasks that there are, but for dropped ones."""
        found = []
        for key in keys:
            row = self._connection.execute(
                f"SELECT {_COLUMNS} FROM tasks WHERE key = ? AND state != 'dropped'",  # noqa: S608
                (key,),
            ).fetchone()
            if row is not None:
                found.append(_task(row))
        return found

    def tasks(self, states: Sequence[State], limit: int) -> list[Task]:
        """Up to `limit` tasks in these states, the oldest first."""
        marks = ", ".join("?" * len(states))
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM tasks WHERE state IN ({marks}) "  # noqa: S608
            "ORDER BY added, id LIMIT ?",
            (*states, limit),
        )
        return [_task(row) for row in rows.fetchall()]

    def counts(self) -> dict[State, Count]:
        """How many tasks there are in each state."""
        rows = self._connection.execute(_COUNTS).fetchall()
        return {State(state): Count(tasks, oldest) for state, tasks, oldest in rows}


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _lock(path: Path, *, within: float) -> int:
    """Hold the lock beside the file; who looks at the queue holds it for a moment, too."""
    held = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    end = time.monotonic() + within
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < end:
                time.sleep(0.02)
                continue
            os.close(held)
            raise QueueUnusable(
                f"another process works on the queue {path}: stop it, or give this service a "
                "data_dir of its own"
            ) from error
        return held


def _task(row: Sequence[Any]) -> Task:
    identity, key, payload, state, *rest = row
    return Task(identity, key, payload, State(state), *rest)


__all__ = ["Count", "QueueDatabase", "QueueUnusable"]
