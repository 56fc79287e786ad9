# SPDX-License-Identifier: Apache-2.0
"""Copies are made on all owners at once; the write quorum decides, whoever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.origin import quorum
from shoal.origin.quorum import Placement, QuorumFailed
from shoal.ring.config import OriginsConfig
from shoal.web.deadline import Deadline
from shoal.web.failures import Rejected, Unreachable

DIGEST = Digest.of(b"blob")
HOSTS = ["a:1", "b:1", "c:1", "d:1", "e:1"]


def config(replicas: int = 3, write_quorum: int = 2) -> OriginsConfig:
    return OriginsConfig(hosts=HOSTS, replicas=replicas, write_quorum=write_quorum)


def refused(host: str) -> Unreachable:
    return Unreachable("PUT", f"http://{host}/x", "refused")


class Hosts:
    """Hosts whose copies succeed, fail or wait as the test says."""

    def __init__(self, *down: str) -> None:
        self.down = set(down)
        self.rejecting: set[str] = set()
        self.gates: dict[str, asyncio.Event] = {}
        self.tried: list[str] = []
        self.running = 0
        self.most = 0
        self.three_at_once = asyncio.Event()

    async def attempt(self, host: str) -> None:
        self.tried.append(host)
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == 3:
            self.three_at_once.set()
        try:
            await asyncio.sleep(0)
            if host in self.gates:
                await self.gates[host].wait()
            if host in self.down:
                raise refused(host)
            if host in self.rejecting:
                raise Rejected("PUT", f"http://{host}/x", "no", status=400)
        finally:
            self.running -= 1


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quorum, "BACKOFF", 0.0)


async def test_all_owners_get_their_copy_at_the_same_time() -> None:
    hosts = Hosts()
    placement = Placement(DIGEST, HOSTS, hosts.attempt, config())
    rest = await placement.until_quorum(Deadline.after(5))
    await rest
    assert sorted(placement.made) == HOSTS[:3]
    assert hosts.most == 3


async def test_returns_at_the_quorum_and_the_rest_goes_on() -> None:
    hosts = Hosts()
    slow = hosts.gates["b:1"] = asyncio.Event()
    placement = Placement(DIGEST, HOSTS, hosts.attempt, config())
    rest = await placement.until_quorum(Deadline.after(5))
    assert sorted(placement.made) == ["a:1", "c:1"]
    slow.set()
    await rest
    assert sorted(placement.made) == HOSTS[:3]


async def test_an_owner_that_fails_is_replaced_by_the_next_in_ring_order() -> None:
    hosts = Hosts("b:1")
    placement = Placement(DIGEST, HOSTS, hosts.attempt, config())
    rest = await placement.until_quorum(Deadline.after(5))
    await rest
    assert sorted(placement.made) == ["a:1", "c:1", "d:1"]
    assert hosts.tried == ["a:1", "b:1", "c:1", "d:1"]


async def test_a_host_gets_a_second_attempt_when_all_were_tried() -> None:
    hosts = Hosts("b:1")
    placement = Placement(DIGEST, HOSTS[:3], hosts.attempt, config())
    rest = await placement.until_quorum(Deadline.after(5))
    await rest
    assert hosts.tried == ["a:1", "b:1", "c:1", "b:1"]
    assert sorted(placement.made) == ["a:1", "c:1"]


async def test_a_refusal_for_good_is_not_tried_again() -> None:
    hosts = Hosts()
    hosts.rejecting = {"b:1"}
    placement = Placement(DIGEST, HOSTS[:3], hosts.attempt, config())
    rest = await placement.until_quorum(Deadline.after(5))
    await rest
    assert hosts.tried == ["a:1", "b:1", "c:1"]


async def test_failure_names_every_host_and_why() -> None:
    hosts = Hosts("a:1", "b:1")
    hosts.rejecting = {"c:1"}
    placement = Placement(DIGEST, HOSTS[:3], hosts.attempt, config())
    with pytest.raises(QuorumFailed) as failed:
        await placement.until_quorum(Deadline.after(5))
    assert {failure.host for failure in failed.value.failures} == {"a:1", "b:1", "c:1"}
    assert str(DIGEST) in str(failed.value)
    for part in ("a:1: refused", "b:1: refused", "c:1: no"):
        assert part in str(failed.value)


async def test_gives_up_as_soon_as_the_quorum_is_out_of_reach() -> None:
    hosts = Hosts()
    hosts.rejecting = {"a:1", "b:1"}
    hosts.gates["c:1"] = asyncio.Event()  # never set
    placement = Placement(DIGEST, HOSTS[:3], hosts.attempt, config())
    with pytest.raises(QuorumFailed):
        await placement.until_quorum(Deadline.after(60))
    assert hosts.running == 0


async def test_a_deadline_that_passes_names_who_was_waited_for() -> None:
    hosts = Hosts()
    hosts.gates["b:1"] = hosts.gates["c:1"] = asyncio.Event()
    placement = Placement(DIGEST, HOSTS[:3], hosts.attempt, config())
    with pytest.raises(QuorumFailed, match="waiting for b:1, c:1") as failed:
        await placement.until_quorum(Deadline.after(0.05))
    assert failed.value.made == ("a:1",)
    assert hosts.running == 0


async def test_a_caller_that_is_cancelled_leaves_nothing_running() -> None:
    hosts = Hosts()
    for host in HOSTS:
        hosts.gates[host] = asyncio.Event()
    placement = Placement(DIGEST, HOSTS, hosts.attempt, config())
    waiting = asyncio.create_task(placement.until_quorum(Deadline.after(60)))
    await hosts.three_at_once.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert hosts.running == 0


async def test_a_ring_smaller_than_the_quorum_says_what_to_do() -> None:
    hosts = Hosts()
    placement = Placement(DIGEST, ["a:1"], hosts.attempt, config())
    with pytest.raises(QuorumFailed, match=r"add origins or lower origins\.write_quorum"):
        await placement.until_quorum(Deadline.after(5))
    assert hosts.tried == []


async def test_an_error_that_is_no_failed_call_is_raised() -> None:
    async def broken(host: str) -> None:
        raise RuntimeError(host)

    with pytest.raises(RuntimeError):
        await Placement(DIGEST, HOSTS, broken, config()).until_quorum(Deadline.after(5))


@settings(max_examples=60, deadline=None)
@given(
    down=st.sets(st.sampled_from(HOSTS)),
    rejecting=st.sets(st.sampled_from(HOSTS)),
    members=st.integers(2, 5),
    replicas=st.integers(1, 5),
    data=st.data(),
)
def test_succeeds_exactly_when_enough_members_can_take_it(
    down: set[str], rejecting: set[str], members: int, replicas: int, data: st.DataObject
) -> None:
    needed = data.draw(st.integers(1, min(replicas, members)))
    hosts = Hosts(*down)
    hosts.rejecting = rejecting
    ring = HOSTS[:members]
    able = [host for host in ring if host not in down | rejecting]

    async def run() -> list[str]:
        placement = Placement(DIGEST, ring, hosts.attempt, config(replicas, needed))
        rest = await placement.until_quorum(Deadline.after(5))
        await rest
        return placement.made

    if len(able) >= needed:
        made = asyncio.run(run())
        assert sorted(made) == able[:replicas]
    else:
        with pytest.raises(QuorumFailed):
            asyncio.run(run())
    assert hosts.running == 0
    assert hosts.most <= replicas


def is_not(*unhealthy: str) -> Callable[[str], bool]:
    return lambda host: host not in unhealthy


async def test_an_unhealthy_owner_is_not_even_tried_while_others_can_take_the_copy() -> None:
    hosts = Hosts()
    hosts.gates["a:1"] = asyncio.Event()  # it hangs
    placement = Placement(DIGEST, HOSTS, hosts.attempt, config(), healthy=is_not("a:1"))
    rest = await placement.until_quorum(Deadline.after(5))
    await rest
    assert sorted(placement.made) == ["b:1", "c:1", "d:1"]
    assert "a:1" not in hosts.tried


async def test_a_copy_beyond_the_quorum_is_left_out_rather_than_sent_to_an_unhealthy_host() -> None:
    hosts = Hosts()
    placement = Placement(DIGEST, HOSTS[:3], hosts.attempt, config(), healthy=is_not("a:1"))
    rest = await placement.until_quorum(Deadline.after(5))
    await rest
    assert sorted(placement.made) == ["b:1", "c:1"]
    assert "a:1" not in hosts.tried


@pytest.mark.parametrize("unhealthy", [["a:1", "b:1"], ["a:1", "b:1", "c:1"]])
async def test_unhealthy_hosts_are_tried_when_the_quorum_needs_them(unhealthy: list[str]) -> None:
    hosts = Hosts()
    placement = Placement(DIGEST, HOSTS[:3], hosts.attempt, config(), healthy=is_not(*unhealthy))
    rest = await placement.until_quorum(Deadline.after(5))
    await rest
    assert len(placement.made) == 2


async def test_an_unhealthy_host_makes_up_for_a_healthy_one_that_failed() -> None:
    hosts = Hosts("b:1")
    placement = Placement(DIGEST, HOSTS[:3], hosts.attempt, config(), healthy=is_not("a:1"))
    rest = await placement.until_quorum(Deadline.after(5))
    await rest
    assert sorted(placement.made) == ["a:1", "c:1"]
