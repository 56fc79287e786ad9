# SPDX-License-Identifier: Apache-2.0
"""Asking several hosts: found, not there, and could not ask are kept apart."""

from __future__ import annotations

import asyncio

from shoal.origin.poll import Poll
from shoal.web.failures import NotFound, Unreachable

HOSTS = ["a:1", "b:1", "c:1"]


class Hosts:
    """Answers: a number, "absent", "down", or an event to wait for before a number."""

    def __init__(self, **answers: int | str | asyncio.Event) -> None:
        self.answers = {f"{name}:1": answer for name, answer in answers.items()}
        self.asked: list[str] = []
        self.running = 0
        self.all_asked = asyncio.Event()

    async def ask(self, host: str) -> int:
        self.asked.append(host)
        self.running += 1
        if self.running == len(self.answers):
            self.all_asked.set()
        try:
            await asyncio.sleep(0)
            match self.answers[host]:
                case asyncio.Event() as gate:
                    await gate.wait()
                    return 0
                case "absent":
                    raise NotFound("GET", host, "not there")
                case "down":
                    raise Unreachable("GET", host, "refused")
                case answer:
                    return int(str(answer))
        finally:
            self.running -= 1


def first(poll: Poll[int]) -> float | None:
    return 0.0 if poll.found else None


def never(poll: Poll[int]) -> float | None:
    return None


async def test_answers_are_kept_apart() -> None:
    poll: Poll[int] = Poll()
    await poll.ask(HOSTS, Hosts(a=1, b="absent", c="down").ask, enough=never)
    assert poll.found == {"a:1": 1}
    assert poll.absent == ["b:1"]
    assert list(poll.unasked) == ["c:1"]
    assert poll.said() == "b:1: not there; c:1: refused"


async def test_the_first_that_has_it_is_enough() -> None:
    hosts = Hosts(a=asyncio.Event(), b=2, c=asyncio.Event())
    poll: Poll[int] = Poll()
    await poll.ask(HOSTS, hosts.ask, enough=first)
    assert poll.found == {"b:1": 2}
    assert poll.overtaken == []
    assert hosts.running == 0


async def test_others_may_linger_for_the_time_that_enough_grants() -> None:
    gate = asyncio.Event()
    hosts = Hosts(a=1, b=gate, c=asyncio.Event())

    def enough(poll: Poll[int]) -> float | None:
        if poll.found:
            gate.set()
        return 0.2 if poll.found else None

    poll: Poll[int] = Poll()
    await poll.ask(HOSTS, hosts.ask, enough=enough)
    assert poll.found == {"a:1": 1, "b:1": 0}
    assert hosts.running == 0


async def test_staggered_asks_one_host_when_that_has_it() -> None:
    hosts = Hosts(a=1, b=2, c=3)
    poll: Poll[int] = Poll()
    await poll.ask(HOSTS, hosts.ask, enough=first, stagger=60)
    assert hosts.asked == ["a:1"]


async def test_staggered_goes_on_at_once_after_an_answer_without_it() -> None:
    hosts = Hosts(a="down", b="absent", c=3)
    poll: Poll[int] = Poll()
    await poll.ask(HOSTS, hosts.ask, enough=first, stagger=60)
    assert poll.found == {"c:1": 3}


async def test_staggered_asks_the_next_host_as_well_when_one_is_silent() -> None:
    hosts = Hosts(a=asyncio.Event(), b=2, c=3)
    poll: Poll[int] = Poll()
    await poll.ask(HOSTS, hosts.ask, enough=first, stagger=0.01)
    assert poll.found == {"b:1": 2}
    assert hosts.asked == ["a:1", "b:1"]
    assert poll.overtaken == ["a:1"]


async def test_no_question_outlives_a_cancelled_caller() -> None:
    hosts = Hosts(a=asyncio.Event(), b=asyncio.Event(), c=asyncio.Event())
    poll: Poll[int] = Poll()
    asking = asyncio.create_task(poll.ask(HOSTS, hosts.ask, enough=never))
    await hosts.all_asked.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert hosts.running == 0
