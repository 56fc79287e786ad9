# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from shoal.buildindex.lookups import (
    Known,
    Lookups,
    Question,
    lookup_answers,
    lookup_request,
)
from shoal.buildindex.messages import MAX_QUESTIONS
from shoal.model.digest import Digest
from shoal.model.manifest import FoundManifest
from shoal.web.client import Answer
from shoal.web.deadline import Deadline
from shoal.web.failures import Overloaded, Unreachable

OLD = FoundManifest(Digest.of(b"old"), "application/x", 3)
NEW = FoundManifest(Digest.of(b"new"), "application/x", 3)
V1 = Question("manifest", "team/app", "v1")
V2 = Question("manifest", "team/app", "v2")
BLOB = Question("blob", "team/app", str(Digest.of(b"layer")))


@dataclass
class Request:
    """A request that came to the build-index and is not answered yet."""

    questions: list[Question]
    deadline: Deadline
    answer: asyncio.Future[Sequence[Known]]


class Wire:
    """A build-index whose answers the test gives."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Request] = asyncio.Queue()
        self.lookups = Lookups(self.send, "b1:5006", timeout=5.0)

    async def send(self, questions: Sequence[Question], deadline: Deadline) -> Sequence[Known]:
        request = Request(list(questions), deadline, asyncio.get_running_loop().create_future())
        self.requests.put_nowait(request)
        return await request.answer

    def ask(self, question: Question, seconds: float = 30.0) -> asyncio.Task[Known]:
        return asyncio.create_task(self.lookups.ask(question, Deadline.after(seconds)))

    async def came(self) -> Request:
        return await self.requests.get()


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def begun(*tasks: asyncio.Task[Known]) -> None:
    """Return when the tasks, just made, wait for their answers."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_an_answer_is_never_older_than_its_question(wire: Wire) -> None:
    early = wire.ask(V1)
    first = await wire.came()
    # The build-index has looked already when the tag moves, and then somebody asks.
    late = wire.ask(V1)
    await begun(late)
    assert wire.requests.empty()
    first.answer.set_result([OLD])
    second = await wire.came()
    assert second.questions == [V1]
    second.answer.set_result([NEW])
    assert (await early, await late) == (OLD, NEW)


async def test_those_who_ask_meanwhile_share_one_request(wire: Wire) -> None:
    first = wire.ask(V1)
    under_way = await wire.came()
    others = [wire.ask(question) for question in (V2, BLOB, V2, V1)]
    await begun(*others)
    under_way.answer.set_result([OLD])
    request = await wire.came()
    assert request.questions == [V2, BLOB, V1]
    request.answer.set_result([False, True, NEW])
    assert await asyncio.gather(first, *others) == [OLD, False, True, False, NEW]
    assert wire.requests.empty()


async def test_those_who_ask_at_the_same_moment_share_the_first_request(wire: Wire) -> None:
    tasks = [wire.ask(V1), wire.ask(BLOB)]
    request = await wire.came()
    assert request.questions == [V1, BLOB]
    request.answer.set_result([NEW, False])
    assert await asyncio.gather(*tasks) == [NEW, False]


async def test_a_request_has_a_bounded_number_of_questions(wire: Wire) -> None:
    numbers = range(MAX_QUESTIONS + 1)
    questions = [Question("manifest", "team/app", f"v{number}") for number in numbers]
    tasks = [wire.ask(question) for question in [*questions, questions[0]]]
    first = await wire.came()
    assert first.questions == questions[:MAX_QUESTIONS]
    first.answer.set_result([OLD] * MAX_QUESTIONS)
    # The question that stands twice is one.
    assert (await tasks[0], await tasks[-1]) == (OLD, OLD)
    second = await wire.came()
    assert second.questions == questions[MAX_QUESTIONS:]
    second.answer.set_result([NEW])
    assert await tasks[MAX_QUESTIONS] == NEW


async def test_who_leaves_harms_nobody_who_asked_the_same(wire: Wire) -> None:
    leaving, staying = wire.ask(V1), wire.ask(V1)
    request = await wire.came()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    request.answer.set_result([NEW])
    assert await staying == NEW


async def test_what_nobody_waits_for_any_more_is_not_asked(wire: Wire) -> None:
    first = wire.ask(V1)
    under_way = await wire.came()
    leaving, staying = wire.ask(V2), wire.ask(BLOB)
    await begun(leaving, staying)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    under_way.answer.set_result([OLD])
    request = await wire.came()
    assert request.questions == [BLOB]
    request.answer.set_result([True])
    assert (await first, await staying) == (OLD, True)


async def test_the_request_goes_on_when_the_one_who_caused_it_leaves(wire: Wire) -> None:
    leaving = wire.ask(V1)
    under_way = await wire.came()
    waiting = wire.ask(V2)
    await begun(waiting)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    under_way.answer.set_result([OLD])
    (await wire.came()).answer.set_result([NEW])
    assert await waiting == NEW


async def test_each_caller_waits_until_its_own_deadline(wire: Wire) -> None:
    hasty, patient = wire.ask(V1, 0.02), wire.ask(V1)
    request = await wire.came()
    assert 4 < request.deadline.remaining() <= 5
    with pytest.raises(Unreachable, match="b1:5006/internal/lookup: no answer in time"):
        await hasty
    request.answer.set_result([NEW])
    assert await patient == NEW


async def test_a_deadline_bounds_the_wait_for_the_next_request_too(wire: Wire) -> None:
    first = wire.ask(V1)
    under_way = await wire.came()
    with pytest.raises(Unreachable, match="no answer in time"):
        await wire.ask(V2, 0.02)
    under_way.answer.set_result([OLD])
    assert await first == OLD
    assert wire.requests.empty()


async def test_a_refusal_is_that_of_its_request_only(wire: Wire) -> None:
    first = wire.ask(V1)
    under_way = await wire.came()
    second = wire.ask(V1)
    await begun(second)
    under_way.answer.set_exception(Overloaded("POST", "http://b1:5006/", "busy", status=503))
    with pytest.raises(Overloaded, match="busy"):
        await first
    (await wire.came()).answer.set_result([NEW])
    assert await second == NEW


async def test_nobody_waits_twice_for_a_build_index_that_hangs(wire: Wire) -> None:
    first = wire.ask(V1)
    under_way = await wire.came()
    second = wire.ask(V2)
    await begun(second)
    under_way.answer.set_exception(Unreachable("POST", "http://b1:5006/", "no answer within 5 s"))
    for asked in (first, second):
        with pytest.raises(Unreachable, match="within 5 s"):
            await asked
    assert wire.requests.empty()
    third = wire.ask(V1)
    (await wire.came()).answer.set_result([NEW])
    assert await third == NEW


async def test_lookups_begin_anew_after_a_pause(wire: Wire) -> None:
    for known in (OLD, NEW):
        asked = wire.ask(V1)
        (await wire.came()).answer.set_result([known])
        assert await asked == known


# -- messages -------------------------------------------------------------------------------------


def answer(body: bytes) -> Answer:
    return Answer("POST", "http://b1:5006/internal/lookup", 200, {}, body)


def test_answers_are_given_to_their_questions_whatever_the_order() -> None:
    questions = [BLOB, V1, V2]
    request = lookup_request(questions, rely=True)
    assert request.manifests == [("team/app", "v1"), ("team/app", "v2")]
    assert request.blobs == [("team/app", BLOB.reference)]
    assert request.rely
    found = b'{"digest":"%s","media_type":"application/x","size":3}' % str(OLD.digest).encode()
    body = b'{"manifests":[null,%s],"blobs":[true]}' % found
    assert lookup_answers(questions, answer(body)) == [True, False, OLD]


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b'{"manifests":[],"blobs":[]}',
        b'{"manifests":[null],"blobs":[true,false]}',
        b'{"manifests":[{"digest":"sha256:no","media_type":"","size":0}],"blobs":[true]}',
    ],
)
def test_an_answer_that_does_not_fit_is_no_answer(body: bytes) -> None:
    with pytest.raises(Unreachable):
        lookup_answers([V1, BLOB], answer(body))
