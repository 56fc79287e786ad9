# SPDX-License-Identifier: Apache-2.0
"""Questions to one host, put together: never stale, and no caller harms another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from shoal.web.batching import Batches
from shoal.web.deadline import Deadline
from shoal.web.failures import Overloaded, Unreachable

URL = "http://b1:5006/internal/lookup"
MOST = 10


@dataclass
class Request:
    """A request that came to the host and is not answered yet."""

    questions: list[str]
    deadline: Deadline
    answer: asyncio.Future[Sequence[str]]


class Wire:
    """A host whose answers the test gives."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Request] = asyncio.Queue()
        self.batches: Batches[str, str] = Batches(self.send, URL, most=MOST, timeout=5.0)

    async def send(self, questions: Sequence[str], deadline: Deadline) -> Sequence[str]:
        request = Request(list(questions), deadline, asyncio.get_running_loop().create_future())
        self.requests.put_nowait(request)
        return await request.answer

    def ask(self, question: str, seconds: float = 30.0) -> asyncio.Task[str]:
        return asyncio.create_task(self.batches.ask(question, Deadline.after(seconds)))

    def ask_all(self, *questions: str) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self.batches.ask_all(questions, Deadline.after(30)))

    async def came(self) -> Request:
        return await self.requests.get()


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def begun(*tasks: asyncio.Task[Any]) -> None:
    """Return when the tasks, just made, wait for their answers."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_an_answer_is_never_older_than_its_question(wire: Wire) -> None:
    early = wire.ask("v1")
    first = await wire.came()
    # The host has looked already when what is asked for changes, and then somebody asks.
    late = wire.ask("v1")
    await begun(late)
    assert wire.requests.empty()
    first.answer.set_result(["old"])
    second = await wire.came()
    assert second.questions == ["v1"]
    second.answer.set_result(["new"])
    assert (await early, await late) == ("old", "new")


async def test_those_who_ask_meanwhile_share_one_request(wire: Wire) -> None:
    first = wire.ask("v1")
    under_way = await wire.came()
    others = [wire.ask(question) for question in ("v2", "blob", "v2", "v1")]
    await begun(*others)
    under_way.answer.set_result(["old"])
    request = await wire.came()
    assert request.questions == ["v2", "blob", "v1"]
    request.answer.set_result(["no", "yes", "new"])
    assert await asyncio.gather(first, *others) == ["old", "no", "yes", "no", "new"]
    assert wire.requests.empty()


async def test_those_who_ask_at_the_same_moment_share_the_first_request(wire: Wire) -> None:
    tasks = [wire.ask("v1"), wire.ask("blob")]
    request = await wire.came()
    assert request.questions == ["v1", "blob"]
    request.answer.set_result(["new", "no"])
    assert await asyncio.gather(*tasks) == ["new", "no"]


async def test_a_request_has_a_bounded_number_of_questions(wire: Wire) -> None:
    numbers = range(MOST + 1)
    questions = [f"v{number}" for number in numbers]
    tasks = [wire.ask(question) for question in [*questions, questions[0]]]
    first = await wire.came()
    assert first.questions == questions[:MOST]
    first.answer.set_result(["old"] * MOST)
    # The question that stands twice is one.
    assert (await tasks[0], await tasks[-1]) == ("old", "old")
    second = await wire.came()
    assert second.questions == questions[MOST:]
    second.answer.set_result(["new"])
    assert await tasks[MOST] == "new"


async def test_who_leaves_harms_nobody_who_asked_the_same(wire: Wire) -> None:
    leaving, staying = wire.ask("v1"), wire.ask("v1")
    request = await wire.came()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    request.answer.set_result(["new"])
    assert await staying == "new"


async def test_what_nobody_waits_for_any_more_is_not_asked(wire: Wire) -> None:
    first = wire.ask("v1")
    under_way = await wire.came()
    leaving, staying = wire.ask("v2"), wire.ask("blob")
    await begun(leaving, staying)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    under_way.answer.set_result(["old"])
    request = await wire.came()
    assert request.questions == ["blob"]
    request.answer.set_result(["yes"])
    assert (await first, await staying) == ("old", "yes")


async def test_the_request_goes_on_when_the_one_who_caused_it_leaves(wire: Wire) -> None:
    leaving = wire.ask("v1")
    under_way = await wire.came()
    waiting = wire.ask("v2")
    await begun(waiting)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    under_way.answer.set_result(["old"])
    (await wire.came()).answer.set_result(["new"])
    assert await waiting == "new"


async def test_each_caller_waits_until_its_own_deadline(wire: Wire) -> None:
    hasty, patient = wire.ask("v1", 0.02), wire.ask("v1")
    request = await wire.came()
    assert 4 < request.deadline.remaining() <= 5
    with pytest.raises(Unreachable, match="b1:5006/internal/lookup: no answer in time"):
        await hasty
    request.answer.set_result(["new"])
    assert await patient == "new"


async def test_a_deadline_bounds_the_wait_for_the_next_request_too(wire: Wire) -> None:
    first = wire.ask("v1")
    under_way = await wire.came()
    with pytest.raises(Unreachable, match="no answer in time"):
        await wire.ask("v2", 0.02)
    under_way.answer.set_result(["old"])
    assert await first == "old"
    assert wire.requests.empty()


async def test_a_refusal_is_that_of_its_request_only(wire: Wire) -> None:
    first = wire.ask("v1")
    under_way = await wire.came()
    second = wire.ask("v1")
    await begun(second)
    under_way.answer.set_exception(Overloaded("POST", "http://b1:5006/", "busy", status=503))
    with pytest.raises(Overloaded, match="busy"):
        await first
    (await wire.came()).answer.set_result(["new"])
    assert await second == "new"


async def test_nobody_waits_twice_for_a_host_that_hangs(wire: Wire) -> None:
    first = wire.ask("v1")
    under_way = await wire.came()
    second = wire.ask("v2")
    await begun(second)
    under_way.answer.set_exception(Unreachable("POST", "http://b1:5006/", "no answer within 5 s"))
    for asked in (first, second):
        with pytest.raises(Unreachable, match="within 5 s"):
            await asked
    assert wire.requests.empty()
    third = wire.ask("v1")
    (await wire.came()).answer.set_result(["new"])
    assert await third == "new"


async def test_questions_begin_anew_after_a_pause(wire: Wire) -> None:
    for known in ("old", "new"):
        asked = wire.ask("v1")
        (await wire.came()).answer.set_result([known])
        assert await asked == known


async def test_questions_of_one_caller_are_answered_together(wire: Wire) -> None:
    many, one = wire.ask_all("a", "b", "a"), wire.ask("b")
    request = await wire.came()
    assert request.questions == ["a", "b"]
    request.answer.set_result(["1", "2"])
    assert await many == ["1", "2", "1"]
    assert await one == "2"


async def test_a_caller_with_many_questions_is_next_when_it_did_not_fit(wire: Wire) -> None:
    some, many = wire.ask_all(*"abcdef"), wire.ask_all(*"fghijkl")
    small = wire.ask("z")
    first = await wire.came()
    assert first.questions == [*"abcdef", "z"]
    later = wire.ask("y")
    await begun(later)
    first.answer.set_result([*"ABCDEF", "Z"])
    second = await wire.came()
    assert second.questions == [*"fghijkl", "y"]
    second.answer.set_result([*"FGHIJKL", "Y"])
    assert (await some, await many) == ([*"ABCDEF"], [*"FGHIJKL"])
    assert (await small, await later) == ("Z", "Y")


async def test_more_questions_than_a_request_may_have_are_refused(wire: Wire) -> None:
    with pytest.raises(ValueError, match="11 questions at once, at most 10"):
        await wire.ask_all(*"abcdefghijk")
