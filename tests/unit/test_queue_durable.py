# SPDX-License-Identifier: Apache-2.0
"""A durable queue at work: attempts, waiting for tasks, hurrying, giving up, and stopping."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from shoal.queue.config import QueueConfig
from shoal.queue.database import QueueDatabase
from shoal.queue.durable import DurableQueue
from shoal.queue.retry import RetryPolicy
from shoal.queue.tasks import Hopeless, Postponed, State, Task
from shoal.web.deadline import Deadline

NAME = "test"
QUICK = RetryPolicy(initial=0.01, factor=2, jitter=0, cap=0.05)
SLOW = RetryPolicy(initial=3600, cap=3600)


class Recorder:
    """Work that does what a test says, and notes who ran when."""

    def __init__(self, perform: Callable[[Task], Awaitable[None]] | None = None) -> None:
        self.runs: Counter[str] = Counter()
        self.running: set[str] = set()
        self.most = 0
        self.gone: list[str] = []
        self._perform = perform

    async def perform(self, task: Task) -> None:
        assert task.key not in self.running, "two workers have one task"
        self.running.add(task.key)
        self.most = max(self.most, len(self.running))
        self.runs[task.key] += 1
        try:
            await asyncio.sleep(0)
            if self._perform is not None:
                await self._perform(task)
        finally:
            self.running.remove(task.key)

    async def let_go(self, task: Task) -> None:
        self.gone.append(task.key)


@asynccontextmanager
async def at_work(
    path: Path, work: Recorder, policy: RetryPolicy = QUICK, **config: float
) -> AsyncIterator[DurableQueue]:
    settings = QueueConfig.model_validate({"retry": policy, **config})
    queue = await DurableQueue.open(NAME, path, settings, work)
    queue.start()
    try:
        yield queue
    finally:
        await queue.stop(0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.sqlite"


def soon() -> Deadline:
    return Deadline.after(20)


def keys(number: int) -> list[str]:
    return [f"key-{n}" for n in range(number)]


async def test_every_task_is_done_once_and_at_most_so_many_at_a_time(path: Path) -> None:
    work = Recorder()
    async with at_work(path, work, concurrency=3) as queue:
        await asyncio.gather(*(queue.add(key, "{}") for key in keys(60)))
        assert await queue.settled(keys(60), soon()) == []
    assert work.runs == Counter(dict.fromkeys(keys(60), 1))
    assert sorted(work.gone) == sorted(keys(60))
    assert work.most <= 3


async def test_a_task_that_fails_is_tried_until_it_succeeds(path: Path) -> None:
    async def third_time_lucky(task: Task) -> None:
        if task.failures < 2:
            raise ConnectionError("refused")

    work = Recorder(third_time_lucky)
    async with at_work(path, work) as queue:
        await queue.add("a", "{}")
        assert await queue.settled(["a"], soon()) == []
    assert work.runs["a"] == 3


async def test_whoever_waits_hurries_it_past_its_backoff(path: Path) -> None:
    failed = asyncio.Event()

    async def once(task: Task) -> None:
        if task.failures == 0:
            failed.set()
            raise ConnectionError("refused")

    async with at_work(path, Recorder(once), SLOW) as queue:
        await queue.add("a", "{}")
        await failed.wait()
        assert await queue.settled(["a"], soon()) == []


async def test_waiting_ends_at_the_deadline_and_says_what_is_left(path: Path) -> None:
    never = asyncio.Event()

    async def stuck(_task: Task) -> None:
        await never.wait()

    async with at_work(path, Recorder(stuck)) as queue:
        await queue.add("a", "{}")
        (left,) = await queue.settled(["a", "unheard of"], Deadline.after(0.05))
        assert left.key == "a"
        assert await queue.settled(["unheard of"], Deadline.after(0)) == []


async def test_a_dead_task_is_kept_and_gets_one_try_from_whoever_waits(path: Path) -> None:
    async def hopeless(_task: Task) -> None:
        raise Hopeless("its file is gone")

    work = Recorder(hopeless)
    async with at_work(path, work) as queue:
        await queue.add("a", "{}")
        (left,) = await queue.settled(["a"], soon())
        assert (left.state, left.error) == (State.DEAD, "its file is gone")
        (again,) = await queue.settled(["a"], soon())
        assert again.failures > left.failures
        assert work.gone == []
        # Taken on anew, it begins anew.
        await queue.add("a", "{}")
        (anew,) = await queue.settled(["a"], soon())
        assert anew.failures < again.failures


async def test_what_was_running_when_the_process_died_runs_again(path: Path) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def stuck(_task: Task) -> None:
        begun.set()
        await never.wait()

    async with at_work(path, Recorder(stuck)) as queue:
        await queue.add("a", "{}")
        await begun.wait()
    work = Recorder()
    async with at_work(path, work) as queue:
        assert await queue.settled(["a"], soon()) == []
    assert work.runs["a"] == 1


async def test_an_operators_changes_are_seen(path: Path) -> None:
    work = Recorder(_refuse)
    async with at_work(path, work, SLOW) as queue:
        await queue.add("a", "{}")
        async with asyncio.timeout(20):
            while (await queue.find(["a"]))[0].failures == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            beside = QueueDatabase.open_beside(path)
            beside.transact([lambda: beside.retry(["a"], time.time())])
            while work.runs["a"] < 2:  # noqa: ASYNC110 -- told by a file
                await asyncio.sleep(0.01)
            while not beside.transact([lambda: beside.drop(["a"])])[0]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            beside.close()
            while work.gone != ["a"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await queue.find(["a"]) == []


async def _refuse(_task: Task) -> None:
    raise ConnectionError("refused")


async def test_a_disk_that_takes_nothing_refuses_and_forgets_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Recorder()
    async with at_work(path, work) as queue:
        assert await queue.missing() == []
        transact = QueueDatabase.transact

        def full(*_: object) -> object:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(QueueDatabase, "transact", full)
        with pytest.raises(sqlite3.OperationalError):
            await queue.add("a", "{}")
        assert "disk is full" in (await queue.missing())[0]
        monkeypatch.setattr(QueueDatabase, "transact", transact)
        assert await queue.missing() == []
        assert await queue.find(["a"]) == []
        await queue.add("b", "{}")
        assert await queue.settled(["b"], soon()) == []


async def test_operators_see_depth_age_and_failures(path: Path) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"queue": NAME, **labels}) or 0.0

    failed, dead = (
        value("shoal_queue_attempts_total", outcome="failed"),
        value("shoal_queue_attempts_total", outcome="dead"),
    )

    async def some(task: Task) -> None:
        raise Hopeless("no") if task.key == "dead" else ConnectionError("refused")

    async with at_work(path, Recorder(some), SLOW) as queue:
        await queue.add("dead", "{}")
        await queue.add("a", "{}")
        async with asyncio.timeout(20):
            while (  # noqa: ASYNC110 -- gauges are set now and then
                value("shoal_queue_tasks", state="dead"),
                value("shoal_queue_tasks", state="waiting"),
            ) != (1, 1) or value("shoal_queue_oldest_seconds") <= 0:
                await asyncio.sleep(0.01)
        assert value("shoal_queue_attempts_total", outcome="failed") == failed + 1
        assert value("shoal_queue_attempts_total", outcome="dead") == dead + 1


async def test_a_clock_that_is_set_back_does_not_hold_up_what_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset = 10 * 365 * 86_400.0
    work = Recorder()
    async with at_work(path, work) as queue:
        monkeypatch.setattr(queue, "_clock", lambda: time.time() + offset)
        await queue.add("a", "{}", delay=1.5)
        await asyncio.sleep(0)
        queue._seen = queue._clock()
        offset = 0.0
        async with asyncio.timeout(10):
            while not work.gone:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert work.gone == ["a"]


async def test_what_is_postponed_comes_again_at_its_time_and_has_not_failed(path: Path) -> None:
    runs: list[float] = []

    async def later(task: Task) -> None:
        assert task.failures == 0
        runs.append(time.time())
        if len(runs) < 3:
            raise Postponed("somebody else is at it", 0.1)

    work = Recorder(later)
    async with at_work(path, work, SLOW, dead_after=0) as queue:
        await queue.add("a", "{}")
        async with asyncio.timeout(20):
            while not work.gone:  # noqa: ASYNC110 -- the queue's threads make it true
                await asyncio.sleep(0.005)
    assert len(runs) == 3
    assert all(after - before >= 0.1 for before, after in pairwise(runs))
