# SPDX-License-Identifier: Apache-2.0
"""Lists of trackers and origins that change while those who use them run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from shoal.model.digest import Digest
from shoal.ring.config import HostsConfig
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.tracker.client import TrackerClient
from shoal.tracker.messages import AnnounceAnswer, AnnouncedBlob, InstanceAnswer
from shoal.tracker.origins import OriginWatch
from shoal.web import lookup
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from shoal.web.hosts import HostList
from tests.dns_server import DnsServer, serve_dns

NAME = "hosts.test"
ME = PeerInfo(new_peer_id(), "10.0.1.1", 1)
DIGESTS = [Digest.of(str(n).encode()) for n in range(40)]


class Services(HttpClient):
    """Trackers and origins; each origin is the peer that has its address."""

    def __init__(self) -> None:
        super().__init__(user_agent="test")
        self.asked: list[str] = []
        self.down: set[str] = set()

    async def call(self, method: str, url: str, **_request: Any) -> Answer:
        host, _, path = url.removeprefix("http://").partition("/")
        self.asked.append(host)
        if host in self.down:
            raise Unreachable(method, url, "refused")
        answers: dict[str, object] = {
            "instance": InstanceAnswer(host),
            "announce": AnnounceAnswer(30.0, {}, {}),
            "internal/peer": PeerInfo(new_peer_id(), host.partition(":")[0], 5003, origin=True),
        }
        return Answer(method, url, 200, {}, msgspec.json.encode(answers[path]))


@pytest.fixture
async def dns(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DnsServer]:
    monkeypatch.setattr(lookup, "TIMEOUT", 0.3)
    transport, server = await serve_dns()
    yield server
    transport.close()


def found(dns: DnsServer) -> HostsConfig:
    return HostsConfig(dns=f"{NAME}:1", nameservers=[dns.address])


def named(dns: DnsServer, *hosts: str) -> None:
    dns.records = {(NAME, "A"): list(hosts)} if hosts else {}


async def announce(client: TrackerClient) -> AnnounceAnswer:
    blobs = [AnnouncedBlob(str(digest), complete=True) for digest in DIGESTS]
    return await client.announce(ME, blobs, deadline=Deadline.after(5))


async def test_a_tracker_that_joins_takes_its_part_of_the_digests(dns: DnsServer) -> None:
    services = Services()
    client = TrackerClient(services, found(dns))
    named(dns, "10.0.0.1", "10.0.0.2")
    await client.listed.refresh()
    await announce(client)
    assert set(services.asked) == {"10.0.0.1:1", "10.0.0.2:1"}
    assert not await client.changed()
    assert not await client.changed()
    named(dns, "10.0.0.2", "10.0.0.3")
    await client.listed.refresh()
    assert await client.changed(), "what is here has to be announced anew"
    assert not await client.changed()
    services.asked.clear()
    await announce(client)
    assert set(services.asked) == {"10.0.0.2:1", "10.0.0.3:1"}


async def test_without_any_tracker_it_is_said_which_name_was_asked(dns: DnsServer) -> None:
    client = TrackerClient(Services(), found(dns))
    await client.listed.refresh()
    with pytest.raises(Unreachable, match=r"tracker\.dns \(hosts\.test:1\)"):
        await announce(client)
    with pytest.raises(Unreachable, match=r"tracker\.dns"):
        await client.metainfo(DIGESTS[0], deadline=Deadline.after(5))
    assert "tracker.dns" in (await client.readiness())[0]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 a task of the watch makes it true
            await asyncio.sleep(0)


async def test_origins_that_join_are_watched_and_those_that_left_are_not(dns: DnsServer) -> None:
    services = Services()
    listed = HostList(found(dns), "origins")
    watch = OriginWatch(services, listed)
    await watch.start()
    try:
        assert not watch.reachable()
        assert list(watch.silent()) == [f"origins.dns ({NAME}:1)"]
        services.down = {"10.0.0.2:1"}
        named(dns, "10.0.0.1", "10.0.0.2")
        await listed.refresh()
        await eventually(lambda: {"10.0.0.1:1", "10.0.0.2:1"} <= set(services.asked))
        await eventually(lambda: set(watch.silent()) == {"10.0.0.2:1"})
        assert watch.reachable()
        one, two = (PeerInfo("0" * 32, f"10.0.0.{n}", 5003, origin=True) for n in (1, 2))
        assert [peer.host for peer in watch.alive([one, two])] == ["10.0.0.1"]
        named(dns, "10.0.0.1", "10.0.0.3")
        await listed.refresh()
        await eventually(lambda: "10.0.0.3:1" in services.asked)
        assert watch.silent() == {}
    finally:
        await watch.stop()
