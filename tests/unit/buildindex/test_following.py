# SPDX-License-Identifier: Apache-2.0
"""A list of build-indexes that changes while its client runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from shoal.buildindex.client import BuildIndexClient
from shoal.model.digest import Digest
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import HostsConfig
from shoal.web import lookup
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from tests.dns_server import DnsServer, serve_dns

NAME = "indexes.test"
ONE_TRY = RetryPolicy(initial=0.01, attempts=1)


class Indexes(HttpClient):
    """Build-indexes that take everything; those that are down cannot be reached."""

    def __init__(self) -> None:
        super().__init__(user_agent="test")
        self.asked: list[str] = []
        self.down: set[str] = set()

    async def call(self, method: str, url: str, **_request: Any) -> Answer:
        host = url.removeprefix("http://").partition("/")[0]
        self.asked.append(host)
        if host in self.down:
            raise Unreachable(method, url, "refused")
        return Answer(method, url, 200, {}, b"{}")


@pytest.fixture
async def dns(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DnsServer]:
    monkeypatch.setattr(lookup, "TIMEOUT", 0.3)
    transport, server = await serve_dns()
    yield server
    transport.close()


def client(indexes: Indexes, dns: DnsServer) -> BuildIndexClient:
    config = HostsConfig(dns=f"{NAME}:1", nameservers=[dns.address])
    return BuildIndexClient(indexes, config, retry=ONE_TRY)


async def test_a_build_index_that_was_moved_is_found_without_a_restart(dns: DnsServer) -> None:
    indexes = Indexes()
    index = client(indexes, dns)
    dns.records = {(NAME, "A"): ["10.0.0.1"]}
    await index.start()
    try:
        await index.link_blob("a/b", Digest.of(b"x"), deadline=Deadline.after(5))
        assert indexes.asked == ["10.0.0.1:1"]
        dns.records = {(NAME, "A"): ["10.0.0.2"]}
        indexes.down = {"10.0.0.1:1"}
        await index._hosts.listed.refresh()
        await index.link_blob("a/b", Digest.of(b"x"), deadline=Deadline.after(5))
        assert indexes.asked == ["10.0.0.1:1", "10.0.0.2:1"]
    finally:
        await index.close()


async def test_without_any_build_index_it_is_said_which_name_was_asked(dns: DnsServer) -> None:
    index = client(Indexes(), dns)
    await index.start()
    try:
        with pytest.raises(Unreachable, match=r"build_index\.dns \(indexes\.test:1\)"):
            await index.link_blob("a/b", Digest.of(b"x"), deadline=Deadline.after(5))
        with pytest.raises(Unreachable, match=r"build_index\.dns"):
            await index.wanted([Digest.of(b"x")], deadline=Deadline.after(5))
        assert "build_index.dns" in (await index.readiness())[0]
    finally:
        await index.close()
