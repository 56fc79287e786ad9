# SPDX-License-Identifier: Apache-2.0
"""How often, and for how long, the origins are asked where blobs are."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from shoal.model.digest import Digest
from shoal.origin.client import ASK_AGAIN, OriginCluster
from shoal.origin.members import ASK_TIMEOUT, Members
from shoal.origin.messages import StatAnswer, StatRequest
from shoal.origin.poll import Poll
from shoal.ring.config import OriginsConfig
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound, Unreachable

A, B, C = HOSTS = ["a:1", "b:1", "c:1"]
ONE, TWO, THREE = (Digest.of(name) for name in (b"one", b"two", b"three"))
CONFIG = OriginsConfig(hosts=HOSTS, replicas=3, write_quorum=2)


@dataclass
class Request:
    """A stat request that came to an origin and is not answered yet."""

    asked: StatRequest
    deadline: Deadline
    answer: asyncio.Future[bytes]

    def has(self, *digests: Digest) -> None:
        """Answer: these are there, each of 5 bytes."""
        present = StatAnswer({str(digest): 5 for digest in digests})
        self.answer.set_result(msgspec.json.encode(present))

    def fails(self) -> None:
        self.answer.set_exception(Unreachable("POST", "http://x/", "no answer within 5.0 s"))


class Origins(HttpClient):
    """Origins whose answers the test gives."""

    def __init__(self) -> None:
        super().__init__(user_agent="test")
        self.came: dict[str, deque[Request]] = {host: deque() for host in HOSTS}
        self.cancelled = 0
        self._more = asyncio.Condition()

    async def call(self, method: str, url: str, **request: Any) -> Answer:
        host = url.removeprefix("http://").removesuffix("/internal/blobs/stat")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        async with self._more:
            self.came[host].append(Request(request["json"], request["deadline"], answer))
            self._more.notify_all()
        try:
            return Answer(method, url, 200, {}, await answer)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def next_at(self, host: str) -> Request:
        async with self._more:
            await self._more.wait_for(lambda: self.came[host])
        return self.came[host].popleft()


@pytest.fixture
async def origins() -> Origins:
    return Origins()


@pytest.fixture
def cluster(origins: Origins) -> OriginCluster:
    return OriginCluster(origins, CONFIG)


def stat(cluster: OriginCluster, digest: Digest, *, keep: bool = False) -> asyncio.Task[int | None]:
    return asyncio.create_task(cluster.stat(digest, deadline=Deadline.after(30), keep=keep))


async def begun(*tasks: asyncio.Task[Any]) -> None:
    """Return when the tasks, just made, wait for their answers."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_those_who_ask_at_once_share_a_request_to_each_origin(
    origins: Origins, cluster: OriginCluster
) -> None:
    tasks = [stat(cluster, digest) for digest in (ONE, TWO, ONE, THREE)]
    requests = [await origins.next_at(host) for host in HOSTS]
    for request in requests:
        assert request.asked.digests == [str(ONE), str(TWO), str(THREE)]
        request.has(ONE, TWO)
    assert await asyncio.gather(*tasks) == [5, 5, 5, None]
    assert not any(origins.came.values())


async def test_an_answer_is_never_older_than_its_question(
    origins: Origins, cluster: OriginCluster
) -> None:
    early = stat(cluster, ONE)
    first = [await origins.next_at(host) for host in HOSTS]
    # The origins have looked already when the blob is pushed, and then somebody asks.
    late = stat(cluster, ONE)
    await begun(early, late)
    assert not any(origins.came.values())
    for request in first:
        request.has()
    for host in HOSTS:
        (await origins.next_at(host)).has(ONE)
    assert (await early, await late) == (None, 5)


async def test_relying_on_blobs_is_asked_apart(origins: Origins, cluster: OriginCluster) -> None:
    looking, relying = stat(cluster, ONE), stat(cluster, TWO, keep=True)
    for host in HOSTS:
        requests = [await origins.next_at(host) for _ in range(2)]
        asked = {(tuple(r.asked.digests), r.asked.keep, r.asked.kept) for r in requests}
        assert asked == {((str(ONE),), False, False), ((str(TWO),), True, False)}
        for request in requests:
            request.has(ONE, TWO)
    assert (await looking, await relying) == (5, 5)


async def test_one_who_relies_hears_the_write_quorum(
    origins: Origins, cluster: OriginCluster
) -> None:
    relying = stat(cluster, ONE, keep=True)
    (await origins.next_at(A)).has(ONE)
    await begun(relying)
    (await origins.next_at(B)).has(ONE)
    assert await relying == 5


async def test_who_has_heard_enough_does_not_wait_for_a_silent_origin(
    origins: Origins, cluster: OriginCluster
) -> None:
    asking = stat(cluster, ONE, keep=True)
    silent = await origins.next_at(C)
    assert ASK_TIMEOUT - 1 < silent.deadline.remaining() <= ASK_TIMEOUT
    for host in (A, B):
        (await origins.next_at(host)).has(ONE)
    assert await asking == 5
    other = stat(cluster, TWO, keep=True)
    for host in (A, B):
        (await origins.next_at(host)).has(TWO)
    assert await other == 5
    # All this time one request was under way there; who has left is not asked for in the next.
    assert not origins.came[C]
    assert origins.cancelled == 0
    last = stat(cluster, THREE, keep=True)
    await begun(last)
    silent.has(ONE)
    for host in HOSTS:
        request = await origins.next_at(host)
        assert request.asked.digests == [str(THREE)]
        request.has(THREE)
    assert await last == 5


async def test_an_origin_that_hangs_is_asked_last_although_nobody_waited_for_it(
    origins: Origins,
) -> None:
    members = Members(origins, CONFIG)
    best, *others = members.in_turn(ONE)
    asking = asyncio.create_task(members.size_on(best, ONE, Deadline.after(30)))
    request = await origins.next_at(best)
    asking.cancel()
    await asyncio.wait([asking])
    assert members.in_turn(ONE) == [best, *others]
    request.fails()
    await begun()
    assert members.in_turn(ONE) == [*others, best]


async def test_a_caller_in_a_hurry_says_nothing_of_the_origin(origins: Origins) -> None:
    members = Members(origins, CONFIG)
    before = members.in_turn(ONE)
    with pytest.raises(Unreachable, match="no answer in time"):
        await members.size_on(before[0], ONE, Deadline.after(0.01))
    assert members.in_turn(ONE) == before
    (await origins.next_at(before[0])).has(ONE)
    assert origins.cancelled == 0


async def test_not_there_needs_so_many_answers_that_no_quorum_is_left(
    origins: Origins, cluster: OriginCluster
) -> None:
    asking = stat(cluster, ONE)
    (await origins.next_at(A)).has()
    await begun(asking)
    (await origins.next_at(B)).has()
    assert await asking is None


async def test_no_answer_is_not_that_it_is_not_there(
    origins: Origins, cluster: OriginCluster
) -> None:
    asking = stat(cluster, ONE)
    for _ in range(ASK_AGAIN.attempts):
        (await origins.next_at(A)).has()
        for host in (B, C):
            (await origins.next_at(host)).fails()
    with pytest.raises(Unreachable, match=r"no answer within 5\.0 s"):
        await asking


async def test_nobody_opens_a_blob_as_not_there_unless_all_members_said_so(
    origins: Origins, cluster: OriginCluster
) -> None:
    opening = asyncio.create_task(cluster.open(ONE, deadline=Deadline.after(30)))
    for host in (A, B):
        (await origins.next_at(host)).has()
    await begun(opening)
    (await origins.next_at(C)).fails()
    with pytest.raises(Unreachable, match="not all could be asked"):
        await opening
    opening = asyncio.create_task(cluster.open(ONE, deadline=Deadline.after(30)))
    for host in HOSTS:
        (await origins.next_at(host)).has()
    with pytest.raises(NotFound):
        await opening


async def test_a_list_of_blobs_and_single_ones_share_requests(
    origins: Origins, cluster: OriginCluster
) -> None:
    listing = asyncio.create_task(cluster.stat_many([ONE, TWO], deadline=Deadline.after(30)))
    single = stat(cluster, THREE)
    for host in HOSTS:
        request = await origins.next_at(host)
        assert request.asked.digests == [str(ONE), str(TWO), str(THREE)]
        request.has(TWO, THREE)
    presence = await listing
    assert (presence.sizes, presence.copies) == ({TWO: 5}, {TWO: frozenset(HOSTS)})
    assert await single == 5


async def test_a_host_that_others_overtake_is_asked_last_the_next_time(origins: Origins) -> None:
    members = Members(origins, CONFIG)
    best, second, third = members.in_turn(ONE)

    async def read(host: str) -> int:
        if host == best:
            await asyncio.Event().wait()
        return 5

    def enough(poll: Poll[int]) -> float | None:
        return 0.0 if poll.found else None

    poll = await members.poll(ONE, read, enough, stagger=0.01)
    assert poll.found == {second: 5}
    assert members.in_turn(ONE) == [second, third, best]
