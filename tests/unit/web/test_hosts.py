# SPDX-License-Identifier: Apache-2.0
"""Lists of hosts that are found by DNS follow it, and are kept when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from shoal.ring.config import HostsConfig
from shoal.web import hosts as hosts_module
from shoal.web import lookup
from shoal.web.hosts import LATEST, HostList
from shoal.web.lookup import LookupFailed, find_hosts
from tests.dns_server import DnsServer, serve_dns

NAME = "origins.test"
SERVICE = "_origin._tcp.test"


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    transport, server = await serve_dns()
    yield server
    transport.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "TIMEOUT", 0.3)
    monkeypatch.setattr(hosts_module, "AGAIN_AFTER", 0.02)
    monkeypatch.setattr(hosts_module, "SOONEST", 0.02)


def by_name(dns: DnsServer) -> HostsConfig:
    return HostsConfig(dns=f"{NAME}:5002", nameservers=[dns.address])


def by_service(dns: DnsServer) -> HostsConfig:
    return HostsConfig(srv=SERVICE, nameservers=[dns.address])


class Followed:
    """A list that is followed, and what its watcher was told."""

    def __init__(self, config: HostsConfig) -> None:
        self.listed = HostList(config, "origins")
        self.changes: asyncio.Queue[tuple[tuple[str, ...], tuple[str, ...]]] = asyncio.Queue()
        self.listed.watch(lambda before, now: self.changes.put_nowait((before, now)))

    async def change(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        async with asyncio.timeout(5):
            return await self.changes.get()


@pytest.fixture
async def follow() -> AsyncIterator[Callable[[HostsConfig], Followed]]:
    made: list[Followed] = []

    def make(config: HostsConfig) -> Followed:
        made.append(Followed(config))
        return made[-1]

    yield make
    for followed in made:
        await followed.listed.close()


Follow = Callable[[HostsConfig], Followed]


async def test_a_written_list_is_there_at_once_and_stays_as_it_is_written(follow: Follow) -> None:
    followed = follow(HostsConfig(hosts=["b:1", "a:1"]))
    assert followed.listed.hosts == ("b:1", "a:1")
    await followed.listed.start()
    assert followed.listed.missing() == []
    assert followed.changes.empty()


async def test_every_address_of_a_name_is_a_host(dns: DnsServer) -> None:
    dns.records = {(NAME, "A"): ["10.0.0.2", "10.0.0.1"], (NAME, "AAAA"): ["2001:db8::1"]}
    dns.ttl = 17
    hosts, ttl = await find_hosts(by_name(dns))
    assert sorted(hosts) == ["10.0.0.1:5002", "10.0.0.2:5002", "[2001:db8::1]:5002"]
    assert ttl == 17


@pytest.mark.parametrize("kind, text", [("A", "10.0.0.1"), ("AAAA", "::1")])
async def test_a_name_may_have_addresses_of_one_kind(dns: DnsServer, kind: str, text: str) -> None:
    dns.records = {(NAME, kind): [text]}
    hosts, _ = await find_hosts(by_name(dns))
    assert len(hosts) == 1
    assert text in hosts[0]


async def test_every_target_of_a_service_is_a_host_at_its_own_port(dns: DnsServer) -> None:
    dns.records = {(SERVICE, "SRV"): ["0 5 5002 O1.test.", "0 5 6002 o2.test."]}
    hosts, _ = await find_hosts(by_service(dns))
    assert sorted(hosts) == ["o1.test:5002", "o2.test:6002"]


@pytest.mark.parametrize(
    "records",
    [{}, {(NAME, "TXT"): ['"x"'], (SERVICE, "SRV"): ["0 0 0 ."]}],
    ids=["no such name", "no such record"],
)
async def test_nobody_is_no_answer(
    dns: DnsServer, records: dict[tuple[str, str], list[str]]
) -> None:
    dns.records = records
    for config in (by_name(dns), by_service(dns)):
        with pytest.raises(LookupFailed, match="test"):
            await find_hosts(config)


async def test_half_an_answer_is_none(dns: DnsServer) -> None:
    dns.records = {(NAME, "A"): ["10.0.0.1"], (NAME, "AAAA"): ["::1"]}
    dns.failing = {"AAAA"}
    with pytest.raises(LookupFailed, match=r"AAAA of origins\.test"):
        await find_hosts(by_name(dns))


async def test_a_server_that_is_silent_is_given_up(dns: DnsServer) -> None:
    dns.silent = True
    async with asyncio.timeout(3):
        with pytest.raises(LookupFailed):
            await find_hosts(by_name(dns))


async def test_changes_are_followed_and_told(dns: DnsServer, follow: Follow) -> None:
    dns.ttl = 0
    dns.records = {(NAME, "A"): ["10.0.0.2", "10.0.0.1"]}
    followed = follow(by_name(dns))
    await followed.listed.start()
    assert await followed.change() == ((), ("10.0.0.1:5002", "10.0.0.2:5002"))
    dns.records = {(NAME, "A"): ["10.0.0.3", "10.0.0.1"]}
    assert await followed.change() == (
        ("10.0.0.1:5002", "10.0.0.2:5002"),
        ("10.0.0.1:5002", "10.0.0.3:5002"),
    )


async def test_another_order_is_no_change(dns: DnsServer, follow: Follow) -> None:
    dns.records = {(NAME, "A"): ["10.0.0.2", "10.0.0.1"]}
    followed = follow(by_name(dns))
    await followed.listed.refresh()
    await followed.change()
    dns.records = {(NAME, "A"): ["10.0.0.1", "10.0.0.2"]}
    await followed.listed.refresh()
    assert followed.changes.empty()


@pytest.mark.parametrize("trouble", ["silent", "SERVFAIL", "NXDOMAIN", "empty"])
async def test_the_last_good_list_is_kept(dns: DnsServer, follow: Follow, trouble: str) -> None:
    dns.ttl = 0
    dns.records = {(NAME, "A"): ["10.0.0.1"]}
    followed = follow(by_name(dns))
    await followed.listed.start()
    await followed.change()
    asked = dns.asked
    dns.silent = trouble == "silent"
    dns.failing = {"A"} if trouble == "SERVFAIL" else set()
    dns.records = {(NAME, "TXT"): ['"x"']} if trouble == "empty" else {}
    await followed.listed.refresh()
    assert dns.asked > asked
    assert followed.listed.hosts == ("10.0.0.1:5002",)
    assert followed.listed.missing() == []
    dns.silent, dns.failing = False, set()
    dns.records = {(NAME, "A"): ["10.0.0.9"]}
    assert (await followed.change())[1] == ("10.0.0.9:5002",)


async def test_a_start_without_an_answer_is_bounded_and_says_what_was_asked(
    dns: DnsServer, follow: Follow
) -> None:
    dns.silent = True
    followed = follow(by_name(dns))
    async with asyncio.timeout(3):
        await followed.listed.start()
    assert followed.listed.hosts == ()
    [missing] = followed.listed.missing()
    assert "origins.dns (origins.test:5002)" in missing
    dns.silent = False
    dns.records = {(NAME, "A"): ["10.0.0.1"]}
    assert await followed.change() == ((), ("10.0.0.1:5002",))
    assert followed.listed.missing() == []


@pytest.mark.parametrize("ttl, wait", [(0, 0.02), (7, 7.0), (86400, LATEST)])
async def test_the_ttl_is_respected_within_bounds(dns: DnsServer, ttl: int, wait: float) -> None:
    dns.ttl = ttl
    dns.records = {(NAME, "A"): ["10.0.0.1"]}
    assert await HostList(by_name(dns), "origins")._look() == wait
