# SPDX-License-Identifier: Apache-2.0
"""One origin writes a blob to its backend, also after an outage; another one takes its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from shoal.backend.base import Name, Source
from shoal.model.digest import Digest
from shoal.origin.messages import Owing
from shoal.origin.turns import YIELDS_FOR, Turn, Turns
from shoal.queue.tasks import State
from shoal.web.deadline import Deadline
from tests.unit.origin.counting_backend import REPOSITORY, CountingBackend
from tests.unit.origin.test_writeback import DATA, DIGEST, HOSTS, A, B, C, Origin, Ring

BLOBS = [DATA + b"%d" % number for number in range(6)]


class SlowBackend(CountingBackend):
    """A transfer takes its time: whoever looks meanwhile does not find the blob."""

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        await asyncio.sleep(0.1)
        await super().put(name, source, deadline=deadline)


@asynccontextmanager
async def owners(
    folder: Path, backend: CountingBackend, *, backends: dict[str, CountingBackend] | None = None
) -> AsyncIterator[dict[str, Origin]]:
    """The three owners, which answer each other."""
    ring = Ring()
    async with AsyncExitStack() as stack:
        for host in HOSTS:
            own = (backends or {}).get(host, backend)
            origin = ring.origins[host] = Origin(folder / host[0], own, ring, host)
            await origin.start(["team/.*"], stagger="50ms", concurrency=2)
            stack.push_async_callback(origin.writeback.stop, 5)
        yield ring.origins


async def push(*origins: Origin) -> None:
    for origin in origins:
        for data in BLOBS:
            await origin.push(data)


async def until_settled(*origins: Origin) -> None:
    for origin in origins:
        await origin.until(lambda origin=origin: not origin.writeback.owing())  # type: ignore[misc]


async def until_failed(origin: Origin, times: int) -> None:
    """Until each of its tasks was tried in vain so often."""
    async with asyncio.timeout(20):
        while min(task.failures for task in await origin.tasks()) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_after_an_outage_and_with_a_backlog_each_blob_is_written_once(
    tmp_path: Path,
) -> None:
    backend = SlowBackend(failure="down")
    async with owners(tmp_path, backend) as origins:
        await push(*origins.values())
        for origin in origins.values():
            await until_failed(origin, 3)
        backend.failure = None
        await until_settled(*origins.values())
        assert sorted(map(str, backend.puts)) == sorted(str(Digest.of(data)) for data in BLOBS)
        for origin in origins.values():
            assert all(origin.local.backing.entries(Digest.of(data)) for data in BLOBS)


async def test_the_next_owner_writes_when_the_first_one_is_dead(tmp_path: Path) -> None:
    dead, backend = CountingBackend(failure="dead"), SlowBackend(failure="down")
    async with owners(tmp_path, backend, backends={A: dead}) as origins:
        await push(*origins.values())
        await until_failed(origins[A], 2)
        del origins[A]  # it answers nobody
        backend.failure = None
        await until_settled(*origins.values())
        assert sorted(map(str, backend.puts)) == sorted(str(Digest.of(data)) for data in BLOBS)


async def test_the_next_owner_writes_when_the_first_one_alone_fails(tmp_path: Path) -> None:
    """Its way to the backend is cut, and it answers all the same."""
    cut, backend = CountingBackend(failure="no route"), SlowBackend()
    async with owners(tmp_path, backend, backends={A: cut}) as origins:
        await push(*origins.values())
        await until_settled(origins[B], origins[C])
        assert sorted(map(str, backend.puts)) == sorted(str(Digest.of(data)) for data in BLOBS)
        assert origins[A].writeback.owing() == len(BLOBS)


async def test_the_next_owner_writes_what_the_first_one_has_given_up(tmp_path: Path) -> None:
    cut, backend = CountingBackend(failure="no route"), SlowBackend()
    async with owners(tmp_path, backend, backends={A: cut}) as origins:
        await origins[A].push()
        await until_failed(origins[A], 1)
        assert await origins[A].writeback.owed([(REPOSITORY, DIGEST), (REPOSITORY, C_DIGEST)]) == [
            Owing(running=False, failures=(await origins[A].tasks())[0].failures),
            None,
        ]
    dead = {"dead_after": "0s", "retry": {"initial": "1ms", "cap": "1ms", "attempts": 1}}
    origin = Origin(tmp_path / "dead", cut, Ring())
    await origin.start(["team/.*"], **dead)
    try:
        await origin.push()
        async with asyncio.timeout(20):
            while (await origin.tasks())[0].state is not State.DEAD:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert await origin.writeback.owed([(REPOSITORY, DIGEST)]) == [None]
    finally:
        await origin.writeback.stop(5)


C_DIGEST = Digest.of(b"another one")


async def test_who_somebody_waits_for_writes_without_waiting_for_others(tmp_path: Path) -> None:
    cut, backend = CountingBackend(failure="no route"), SlowBackend()
    async with owners(tmp_path, backend, backends={A: cut}) as origins:
        await origins[A].push()
        await origins[B].push()
        await origins[B].writeback.settle(DIGEST, REPOSITORY, Deadline.after(20))
        assert backend.puts == [DIGEST]


def waiting(failures: int) -> Owing:
    return Owing(running=False, failures=failures)


def test_one_that_is_at_it_or_waits_for_its_first_try_is_left_to_it() -> None:
    turns = Turns()
    assert turns.judge("t", {}, 0.0) is Turn.MINE
    assert turns.judge("t", {A: waiting(0)}, 0.0) is Turn.THEIRS
    assert turns.judge("t", {A: Owing(running=True, failures=9)}, 0.0) is Turn.THEIRS
    assert turns.judge("t", {A: waiting(5), B: waiting(0)}, 0.0) is Turn.THEIRS


def test_one_that_fails_is_replaced_when_the_backend_answers_others() -> None:
    turns = Turns()
    assert turns.judge("t", {A: waiting(3)}, 0.0) is Turn.LOOK
    turns.answered("t", {A: waiting(3)})
    assert turns.judge("t", {A: waiting(3)}, 0.0) is Turn.THEIRS
    assert turns.judge("t", {A: waiting(4)}, 0.0) is Turn.MINE
    assert turns.judge("other", {A: waiting(4)}, 0.0) is Turn.LOOK
    # Its task was done, and is a new one.
    assert turns.judge("t", {A: waiting(1)}, 0.0) is Turn.LOOK
    turns.forget("t")
    assert turns.judge("t", {A: waiting(4)}, 0.0) is Turn.LOOK


def test_nobody_is_waited_for_for_ever() -> None:
    turns = Turns()
    assert turns.judge("t", {A: waiting(0)}, 100.0) is Turn.THEIRS
    assert turns.judge("t", {A: waiting(0)}, 100.0 + YIELDS_FOR - 1) is Turn.THEIRS
    assert turns.judge("t", {A: waiting(0)}, 100.0 + YIELDS_FOR) is Turn.MINE
    # While the backend answers nobody, that is not the others' fault.
    turns.forget("t")
    assert turns.judge("t", {A: waiting(7)}, 100.0 + YIELDS_FOR) is Turn.LOOK
