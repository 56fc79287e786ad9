# SPDX-License-Identifier: Apache-2.0
"""The ring while its members come, leave, fall ill and recover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.origin.members import Change, Members
from shoal.origin.messages import StatAnswer
from shoal.ring.config import HealthConfig, OriginsConfig
from shoal.web import hosts as hosts_module
from shoal.web import lookup
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from tests.dns_server import DnsServer, serve_dns

NAME = "origins.test"
A, B, C, D = HOSTS = [f"10.0.0.{n}:1" for n in range(1, 5)]
DIGEST = Digest.of(b"blob")
QUICKLY = HealthConfig(interval=0.02, timeout=0.2, fails=2, passes=2)


class Origins(HttpClient):
    """Origins that answer at once, fail or hang."""

    def __init__(self) -> None:
        super().__init__(user_agent="test")
        self.down: set[str] = set()
        self.have: dict[str, set[Digest]] = {}
        self.asked: list[str] = []

    async def call(self, method: str, url: str, **_request: Any) -> Answer:
        host, _, path = url.removeprefix("http://").partition("/")
        if path != "health":
            self.asked.append(host)
        if host in self.down:
            raise Unreachable(method, url, "refused")
        present = StatAnswer({str(digest): 5 for digest in self.have.get(host, ())})
        return Answer(method, url, 200, {}, msgspec.json.encode(present))


@pytest.fixture
def origins() -> Origins:
    return Origins()


@pytest.fixture
async def dns(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DnsServer]:
    monkeypatch.setattr(hosts_module, "SOONEST", 0.02)
    transport, server = await serve_dns()
    server.ttl = 0
    yield server
    transport.close()


class Told:
    """The changes that a watcher was told of."""

    def __init__(self, members: Members) -> None:
        self._changes: asyncio.Queue[Change] = asyncio.Queue()
        members.watch(self._changes.put_nowait)

    async def next(self) -> Change:
        async with asyncio.timeout(5):
            return await self._changes.get()


def named(dns: DnsServer, *hosts: str) -> None:
    dns.records = {(NAME, "A"): [host.partition(":")[0] for host in hosts]}


def found(dns: DnsServer, **more: Any) -> OriginsConfig:
    return OriginsConfig(dns=f"{NAME}:1", nameservers=[dns.address], **more)


async def test_members_come_and_leave_with_the_dns(dns: DnsServer, origins: Origins) -> None:
    named(dns, A, B, C)
    members = Members(origins, found(dns))
    told = Told(members)
    await members.start(check=False)
    try:
        assert await told.next() == Change(joined=frozenset({A, B, C}))
        named(dns, B, C, D)
        assert await told.next() == Change(joined=frozenset({D}), left=frozenset({A}))
        assert members.hosts == (B, C, D)
        assert A not in members.ring(DIGEST)
        assert sorted(members.owners(DIGEST)) == [B, C, D]
    finally:
        await members.close()


async def test_a_host_that_left_is_no_longer_asked(dns: DnsServer, origins: Origins) -> None:
    named(dns, A, B, C)
    cluster = OriginCluster(origins, found(dns))
    changed = asyncio.Event()
    await cluster.start(check=False)
    cluster.watch(lambda _: changed.set())
    try:
        assert await cluster.stat(DIGEST, deadline=Deadline.after(5)) is None
        named(dns, B, C, D)
        async with asyncio.timeout(5):
            await changed.wait()
        origins.have[D] = {DIGEST}
        origins.asked.clear()
        assert await cluster.stat(DIGEST, deadline=Deadline.after(5)) == 5
        assert A not in origins.asked
    finally:
        await cluster.close()


@pytest.mark.parametrize("known", [[], [A]], ids=["nobody", "fewer than the quorum"])
async def test_a_list_that_is_too_short_never_says_not_there(
    dns: DnsServer, origins: Origins, known: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "TIMEOUT", 0.2)
    named(dns, *known)
    if not known:
        dns.records = {}
    cluster = OriginCluster(origins, found(dns, write_quorum=2))
    await cluster.start(check=False)
    try:
        for asking in (
            cluster.stat(DIGEST, deadline=Deadline.after(2)),
            cluster.metainfo(DIGEST, deadline=Deadline.after(2)),
            cluster.open(DIGEST, deadline=Deadline.after(2)),
        ):
            with pytest.raises(Unreachable, match=r"origins\.dns"):
                await asking
        presence = await cluster.stat_many([DIGEST], deadline=Deadline.after(2))
        assert presence.unasked
    finally:
        await cluster.close()


async def test_checks_make_a_member_unhealthy_and_healthy_again(origins: Origins) -> None:
    members = Members(origins, OriginsConfig(hosts=HOSTS, health=QUICKLY))
    told = Told(members)
    await members.start()
    best, *others = members.ring(DIGEST)
    try:
        origins.down = {best}
        assert await told.next() == Change(lost=frozenset({best}))
        assert not members.healthy(best)
        assert members.in_turn(DIGEST) == [*others, best]
        assert members.rounds(DIGEST) == [others, [], [best]]
        assert members.ring(DIGEST) == [best, *others]
        origins.down = set()
        assert await told.next() == Change(back=frozenset({best}))
        assert members.in_turn(DIGEST) == [best, *others]
    finally:
        await members.close()


async def test_an_unhealthy_member_is_asked_only_when_the_others_do_not_suffice(
    origins: Origins,
) -> None:
    config = OriginsConfig(hosts=HOSTS, replicas=2, write_quorum=2, health=QUICKLY)
    cluster = OriginCluster(origins, config)
    best, second, third, fourth = cluster._members.ring(DIGEST)
    lost = asyncio.Event()
    cluster.watch(lambda change: lost.set() if change.lost else None)
    await cluster.start()
    try:
        origins.down = {best}
        async with asyncio.timeout(5):
            await lost.wait()
        assert await cluster.stat(DIGEST, deadline=Deadline.after(5)) is None
        assert best not in origins.asked
        origins.have[third] = {DIGEST}
        presence = await cluster.stat_many([DIGEST], deadline=Deadline.after(5))
        assert presence.copies == {DIGEST: frozenset({third})}
        assert not presence.unasked
        assert best not in origins.asked
        # Who relies on it wants to know of a write quorum of copies.
        presence = await cluster.stat_many([DIGEST], deadline=Deadline.after(5), keep=True)
        assert presence.copies == {DIGEST: frozenset({third})}
        assert set(presence.unasked) == {best}
        origins.have = {}
        presence = await cluster.stat_many([DIGEST], deadline=Deadline.after(5))
        assert set(presence.unasked) == {best}
        assert {second, third, fourth} <= set(origins.asked)
    finally:
        await cluster.close()


async def test_who_relies_on_a_blob_hears_of_its_copy_on_a_member_that_counts_as_unhealthy(
    origins: Origins,
) -> None:
    slowly = HealthConfig(interval=0.02, timeout=0.2, fails=2, passes=100_000)
    config = OriginsConfig(hosts=HOSTS[:3], write_quorum=2, health=slowly)
    cluster = OriginCluster(origins, config)
    best, second, third = cluster._members.ring(DIGEST)
    lost = asyncio.Event()
    cluster.watch(lambda change: lost.set() if change.lost else None)
    await cluster.start()
    try:
        origins.down = {best}
        async with asyncio.timeout(5):
            await lost.wait()
        origins.down = {third}
        origins.have = {best: {DIGEST}, second: {DIGEST}}
        assert not cluster._members.healthy(best)
        presence = await cluster.stat_many([DIGEST], deadline=Deadline.after(5), keep=True)
        assert presence.copies == {DIGEST: frozenset({best, second})}
    finally:
        await cluster.close()


async def test_without_an_interval_nobody_is_checked(origins: Origins) -> None:
    config = OriginsConfig(hosts=HOSTS, health=HealthConfig(interval=0))
    members = Members(origins, config)
    await members.start()
    assert members.health._loop is None
    await members.close()


def test_a_heavier_member_owns_more(origins: Origins) -> None:
    config = OriginsConfig(hosts=HOSTS, replicas=1, write_quorum=1, weights={D: 3.0})
    members = Members(origins, config)
    first = [members.owners(Digest.of(str(n).encode()))[0] for n in range(3000)]
    assert 0.45 < first.count(D) / len(first) < 0.55
