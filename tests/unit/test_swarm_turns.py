# SPDX-License-Identifier: Apache-2.0
"""Worker threads are taken in order of urgency."""

from __future__ import annotations

import asyncio

import pytest

from shoal.swarm.turns import Turns


class Line:
    """Tasks that want a turn, and the order in which they got one."""

    def __init__(self, places: int) -> None:
        self.turns = Turns(places)
        self.served: list[str] = []
        self.doors: dict[str, asyncio.Event] = {}

    async def queue(self, name: str, urgency: int) -> asyncio.Task[None]:
        self.doors[name] = asyncio.Event()
        task = asyncio.create_task(self._work(name, urgency))
        await asyncio.sleep(0)
        return task

    async def _work(self, name: str, urgency: int) -> None:
        async with self.turns.take(urgency):
            self.served.append(name)
            await self.doors[name].wait()

    async def leave(self, task: asyncio.Task[None], name: str) -> None:
        self.doors[name].set()
        await task
        await asyncio.sleep(0)


async def test_the_most_urgent_goes_first_and_equals_in_order_of_arrival() -> None:
    line = Line(1)
    first = await line.queue("first", 9)
    tasks = {
        name: await line.queue(name, urgency)
        for name, urgency in [("late", 5), ("next", 0), ("later", 5)]
    }
    await line.leave(first, "first")
    for name in ("next", "late", "later"):
        assert line.served[-1] == name
        await line.leave(tasks[name], name)
    assert line.served == ["first", "next", "late", "later"]


async def test_it_tells_how_many_wait() -> None:
    line = Line(1)
    tasks = [await line.queue(name, 0) for name in "abc"]
    seen = [line.turns.waiting]
    for task, name in zip(tasks, "abc", strict=True):
        await line.leave(task, name)
        seen.append(line.turns.waiting)
    assert seen == [2, 1, 0, 0]


async def test_all_places_are_used_and_come_back() -> None:
    line = Line(2)
    tasks = [await line.queue(name, 0) for name in "abc"]
    assert line.served == ["a", "b"]
    for task, name in zip(tasks, "abc", strict=True):
        await line.leave(task, name)
    assert line.served == ["a", "b", "c"]
    again = await line.queue("d", 0)
    assert line.served[-1] == "d"
    await line.leave(again, "d")


@pytest.mark.parametrize("passed_on", [False, True])
async def test_one_that_is_cancelled_while_it_waits_takes_no_place(passed_on: bool) -> None:
    line = Line(1)
    first = await line.queue("first", 0)
    gone = await line.queue("gone", 0)
    last = await line.queue("last", 1)
    if passed_on:
        # Its turn comes in the same moment in which it is cancelled.
        line.doors["first"].set()
        first.add_done_callback(lambda _: gone.cancel())
    else:
        gone.cancel()
    await asyncio.wait([gone])
    line.doors["first"].set()
    line.doors["last"].set()
    line.doors["gone"].set()
    await asyncio.gather(first, last)
    assert line.served[-1] == "last"
