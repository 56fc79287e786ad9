# SPDX-License-Identifier: Apache-2.0
"""The queue's file: no task is lost and none is claimed twice, whatever dies in between."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.queue.database import SCHEMA_VERSION, QueueDatabase, QueueUnusable
from shoal.queue.retry import RetryPolicy
from shoal.queue.tasks import State, Task, after_failure

KEYS = st.sampled_from([f"key-{n}" for n in range(6)])
FOREVER = 1e12


def work(path: Path, latest_due: float = FOREVER) -> QueueDatabase:
    return QueueDatabase.open_to_work(path, latest_due=latest_due)


def do(database: QueueDatabase, step: Callable[[], object]) -> object:
    return database.transact([step])[0]


def claim(database: QueueDatabase, now: float, count: int = 10) -> list[Task]:
    tasks: list[Task] = database.transact([lambda: database.claim(now, count)])[0]
    return tasks


class QueueLife(RuleBasedStateMachine):
    """One queue over kills of its process, power cuts, failures, and operators beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-queue-"))
        self.lives = 0
        self.now = 1000.0
        self.database = work(self.path)
        self.states: dict[str, State] = {}
        self.claimed: dict[str, Task] = {}

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    @property
    def path(self) -> Path:
        return self.folder / str(self.lives) / "queue.sqlite"

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        do(self.database, lambda: self.database.add(key, "{}", self.now))
        if self.states.get(key) is not State.RUNNING:
            self.states[key] = State.WAITING

    @rule(count=st.integers(1, 4), later=st.floats(0, 100))
    def claims(self, count: int, later: float) -> None:
        self.now += later
        for task in claim(self.database, self.now, count):
            assert self.states[task.key] is State.WAITING
            assert task.key not in self.claimed
            self.states[task.key] = State.RUNNING
            self.claimed[task.key] = task

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), hopeless=st.booleans())
    def fails(self, data: st.DataObject, hopeless: bool) -> None:
        task = self.claimed.pop(data.draw(st.sampled_from(sorted(self.claimed))))
        after = after_failure(
            task,
            "no",
            now=self.now,
            policy=RetryPolicy(),
            dead_after=3600,
            rng=random.Random(0),
            hopeless=hopeless,
        )
        do(self.database, lambda: self.database.put_back(after))
        self.states[task.key] = after.state

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def succeeds(self, data: st.DataObject) -> None:
        task = self.claimed.pop(data.draw(st.sampled_from(sorted(self.claimed))))
        do(self.database, lambda: self.database.done(task))
        del self.states[task.key]

    @rule(power=st.booleans())
    def is_killed(self, power: bool) -> None:
        if power:
            # What is on the disk at this moment, and nothing of what a close would still write.
            shutil.copytree(self.path.parent, self.folder / str(self.lives + 1))
            self.database.close()
            self.lives += 1
        else:
            self.database.close()
        self.database = work(self.path)
        for key in self.claimed:
            self.states[key] = State.WAITING
        self.claimed.clear()

    @rule(key=KEYS)
    def is_hurried(self, key: str) -> None:
        do(self.database, lambda: self.database.expedite([key]))
        if self.states.get(key) is State.DEAD:
            self.states[key] = State.WAITING

    @rule(key=KEYS)
    def an_operator_retries(self, key: str) -> None:
        beside = QueueDatabase.open_beside(self.path)
        changed = do(beside, lambda: beside.retry([key], self.now))
        beside.close()
        known = self.states.get(key) in {State.WAITING, State.DEAD}
        assert changed == ([key] if known else [])
        if known:
            self.states[key] = State.WAITING

    @rule(key=KEYS)
    def an_operator_drops(self, key: str) -> None:
        beside = QueueDatabase.open_beside(self.path)
        changed = do(beside, lambda: beside.drop([key]))
        beside.close()
        known = self.states.get(key) in {State.WAITING, State.DEAD}
        assert changed == ([key] if known else [])
        if known:
            self.states[key] = State.DROPPED

    @rule()
    def dropped_ones_are_removed(self) -> None:
        removed = self.database.transact([self.database.remove_dropped])[0]
        dropped = {key for key, state in self.states.items() if state is State.DROPPED}
        assert {task.key for task in removed} == dropped
        for key in dropped:
            del self.states[key]

    @invariant()
    def every_task_is_there_in_its_state(self) -> None:
        found = {task.key: task.state for task in self.database.tasks(list(State), 100)}
        assert found == self.states
        counted = {state: count.tasks for state, count in self.database.counts().items()}
        assert sum(counted.values()) == len(self.states)


QueueLife.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestQueueLife = QueueLife.TestCase


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "queue.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[QueueDatabase]:
    opened = work(path)
    yield opened
    opened.close()


def test_what_is_due_first_is_claimed_first_and_what_is_hurried_before_it(
    database: QueueDatabase,
) -> None:
    for number, key in enumerate("abcd"):
        do(database, lambda key=key, number=number: database.add(key, "", 1.0 + number))  # type: ignore[misc]
    do(database, lambda: database.expedite(["c"]))
    assert [task.key for task in claim(database, 2.5)] == ["c", "a", "b"]
    assert claim(database, 2.5) == []
    assert database.next_due() == 4.0


def test_a_transaction_that_fails_changes_nothing(database: QueueDatabase) -> None:
    def break_off() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError):
        database.transact([lambda: database.add("a", "", 0), break_off])
    assert database.find(["a"]) == []
    do(database, lambda: database.add("a", "", 0))
    assert database.find(["a"])


def test_what_is_added_again_while_it_runs_is_done_once_more(database: QueueDatabase) -> None:
    do(database, lambda: database.add_again("key", "first", 1.0, 1.0))
    (running,) = claim(database, 1.0)
    do(database, lambda: database.add_again("key", "first", 2.0, 2.0))
    do(database, lambda: database.add_again("key", "second", 3.0, 3.0))
    assert claim(database, 9.0) == []
    assert do(database, lambda: database.done(running)) is False
    (again,) = claim(database, 9.0)
    assert (again.payload, again.failures) == ("second", 0)
    do(database, lambda: database.add_again("key", "second", 10.0, 10.0))
    assert do(database, lambda: database.done(again)) is True
    assert claim(database, 99.0) == []


def test_what_waits_for_its_first_attempt_is_brought_forward(database: QueueDatabase) -> None:
    do(database, lambda: database.add_again("key", "later", 1.0, 50.0))
    assert claim(database, 2.0) == []
    do(database, lambda: database.add_again("key", "now", 2.0, 2.0))
    assert [task.key for task in claim(database, 2.0)] == ["key"]


def test_one_process_works_on_a_queue(path: Path, database: QueueDatabase) -> None:
    with pytest.raises(QueueUnusable, match="another process"):
        work(path)
    database.close()
    work(path).close()


def test_beside_a_service_that_runs_nothing_is_taken_from_it(
    path: Path, database: QueueDatabase
) -> None:
    do(database, lambda: database.add("a", "", 0))
    claim(database, 0)
    beside = QueueDatabase.open_beside(path)
    assert [task.state for task in beside.find(["a"])] == [State.RUNNING]
    beside.close()
    database.close()
    beside = QueueDatabase.open_beside(path)
    assert [task.state for task in beside.find(["a"])] == [State.WAITING]
    beside.close()


def test_a_clock_that_was_set_back_delays_no_task_beyond_a_restart(path: Path) -> None:
    database = work(path)
    do(database, lambda: database.add("a", "", 1e9))
    database.close()
    database = work(path, latest_due=1000)
    assert claim(database, 1000)
    database.close()


def test_a_queue_that_cannot_be_used_is_named(path: Path) -> None:
    with pytest.raises(QueueUnusable, match="there is no queue at"):
        QueueDatabase.open_beside(path)
    work(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(QueueUnusable, match="newer Shoal"):
        work(path)
    with pytest.raises(QueueUnusable, match="schema"):
        QueueDatabase.open_beside(path)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(QueueUnusable, match="cannot open"):
        work(path)


def test_commits_are_synced(database: QueueDatabase) -> None:
    connection = database._connection
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
