# SPDX-License-Identifier: Apache-2.0
"""Real origins whose ring changes while they run: by DNS, by hosts that hang, and over IPv6."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.layout import BLOCK
from shoal.cluster.ports import reserve
from shoal.config.units import join_address
from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.origin.members import Change
from shoal.ring.config import HealthConfig, OriginsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from tests.dns_server import DnsServer, dns_in_thread
from tests.integration.origin_ring import Origin, Ring, running_ring, until

NAME = "origins.test"
QUICKLY = HealthConfig(interval=0.2, timeout=0.4, fails=2, passes=2)
WRITTEN = {"interval": "200ms", "timeout": "400ms", "fails": 2, "passes": 2}
KIB = 1024


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with dns_in_thread() as server:
        server.ttl = 0
        yield server


class Origins:
    """Origins with one port on addresses of their own, as one DNS name has them."""

    def __init__(self, folder: Path, dns: DnsServer, port: int) -> None:
        self._folder = folder
        self._dns = dns
        self._port = port
        self.origins: list[Origin] = []

    def add(self, n: int, **more: Any) -> Origin:
        """Start an origin at 127.0.0.n; the DNS does not know it yet."""
        host = f"127.0.0.{n}"
        config = {
            "listen": f"{host}:{self._port}",
            "peer": {"listen": f"{host}:{self._port + 1}"},
            "data_dir": str(self._folder / host / "data"),
            "origins": self.config(),
            **more,
        }
        origin = Origin(self._folder / host, config)
        self.origins.append(origin)
        origin.start()
        return origin

    def config(self) -> dict[str, Any]:
        return {
            "dns": f"{NAME}:{self._port}",
            "nameservers": [self._dns.address],
            "replicas": 2,
            "write_quorum": 2,
        }

    def publish(self, *numbers: int) -> None:
        self._dns.records = {(NAME, "A"): [f"127.0.0.{n}" for n in numbers]}


@pytest.fixture
def origins(tmp_path: Path, dns: DnsServer) -> Iterator[Origins]:
    with reserve(BLOCK) as ports:
        made = Origins(tmp_path, dns, ports.first + 1)
        yield made
        for origin in made.origins:
            origin.kill()


@asynccontextmanager
async def client(config: OriginsConfig, *, check: bool = True) -> AsyncIterator[OriginCluster]:
    http = HttpClient(user_agent="test")
    cluster = OriginCluster(http, config)
    await cluster.start(check=check)
    yield cluster
    await cluster.drain(10)
    await cluster.close()
    await http.close()


class Blobs:
    """Blobs in files, made to order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "blobs"
        self._folder.mkdir()

    def of(self, wanted: Callable[[Digest], bool], size: int = 64 * KIB) -> tuple[Digest, Path]:
        """A random blob whose digest is as wanted."""
        while True:
            data = os.urandom(size)
            digest = Digest.of(data)
            if wanted(digest):
                path = self._folder / digest.hex
                path.write_bytes(data)
                return digest, path


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def soon() -> Deadline:
    return Deadline.after(20)


async def upload(cluster: OriginCluster, blob: tuple[Digest, Path]) -> tuple[str, ...]:
    digest, path = blob
    result = await cluster.upload(digest, path, path.stat().st_size, deadline=soon())
    return result.hosts


def readiness(origin: Origin) -> str:
    try:
        with urllib.request.urlopen(origin.url("/readiness"), timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(json.loads(error.read())["missing"])
    except OSError:
        return ""


async def test_a_fourth_origin_joins_by_dns_and_receives_new_blobs(
    origins: Origins, blobs: Blobs
) -> None:
    origins.publish(1, 2, 3)
    for n in (1, 2, 3):
        origins.add(n)
    for origin in origins.origins:
        await asyncio.to_thread(origin.wait_ready)
    async with client(OriginsConfig.model_validate(origins.config()), check=False) as cluster:
        assert list(cluster.members) == sorted(origin.host for origin in origins.origins)
        fourth = origins.add(4)
        await until(lambda: "calls itself" in readiness(fourth), 20)
        joined = asyncio.Event()
        cluster.watch(lambda change: joined.set() if fourth.host in change.joined else None)
        origins.publish(1, 2, 3, 4)
        async with asyncio.timeout(10):
            await joined.wait()
        await asyncio.to_thread(fourth.wait_ready, 10)
        mine = blobs.of(lambda digest: fourth.host in cluster.owners(digest))
        assert fourth.host in await upload(cluster, mine)
        assert fourth.path(mine[0]).exists()
        # The other origins, which nobody restarted, place blobs on it as well.
        first = origins.origins[0]
        async with asyncio.timeout(10):
            while True:
                digest, path = blobs.of(lambda digest: fourth.host in cluster.owners(digest))
                await asyncio.to_thread(put, first.url(f"/namespace/x/blobs/{digest}"), path)
                if fourth.path(digest).exists():
                    break


def put(url: str, path: Path) -> None:
    request = urllib.request.Request(url, data=path.read_bytes(), method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status in (200, 201)


async def test_the_ring_goes_on_while_the_dns_is_down(
    origins: Origins, blobs: Blobs, dns: DnsServer
) -> None:
    origins.publish(1, 2)
    for n in (1, 2):
        origins.add(n)
    for origin in origins.origins:
        await asyncio.to_thread(origin.wait_ready)
    async with client(OriginsConfig.model_validate(origins.config()), check=False) as cluster:
        asked = dns.asked
        dns.records = {}
        # Origins and client have all asked again, and were told of nobody.
        await until(lambda: dns.asked >= asked + 6, 20)
        assert len(await upload(cluster, blobs.of(lambda _: True))) == 2
        for origin in origins.origins:
            assert "true" in readiness(origin)


async def test_an_origin_that_its_list_does_not_name_stops_and_says_so(origins: Origins) -> None:
    origins.publish(1, 2, 3)
    origin = origins.add(9, join_timeout="1s")
    assert await asyncio.to_thread(origin.ended) == 1
    said = origin.log.read_text()
    assert f"this origin calls itself {origin.host}" in said
    assert "set name to what the list calls it" in said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    folder = tmp_path_factory.mktemp("four")
    with running_ring(folder, origins=4, replicas=2, write_quorum=2) as ring:
        yield ring


async def test_writers_and_readers_pass_over_an_origin_that_hangs(four: Ring, blobs: Blobs) -> None:
    config = OriginsConfig(hosts=four.config.hosts, replicas=2, write_quorum=2, health=QUICKLY)
    frozen = four.origins[0]
    changes: asyncio.Queue[Change] = asyncio.Queue()

    def owned(digest: Digest) -> bool:
        return frozen.host in cluster.owners(digest)

    async with client(config) as cluster:
        before = blobs.of(owned, 2048 * KIB)
        assert frozen.host in await upload(cluster, before)
        cluster.watch(changes.put_nowait)
        frozen.freeze()
        try:
            async with asyncio.timeout(10):
                assert await changes.get() == Change(lost=frozenset({frozen.host}))
            seconds = []
            for n in range(20):
                blob = blobs.of(owned, (64 if n % 2 else 2048) * KIB)
                began = time.monotonic()
                assert await cluster.stat(blob[0], deadline=soon()) is None
                hosts = await upload(cluster, blob)
                seconds.append(time.monotonic() - began)
                assert len(hosts) == 2
                assert frozen.host not in hosts
            assert statistics.median(seconds) < 0.25, seconds
            assert max(seconds) < 2, seconds
            began = time.monotonic()
            remote = await cluster.open(before[0], deadline=soon())
            parts = [bytes(part) async for part in remote.segments(0, remote.size)]
            assert Digest.of(b"".join(parts)) == before[0]
            assert time.monotonic() - began < 2
        finally:
            frozen.thaw()
        async with asyncio.timeout(10):
            assert await changes.get() == Change(back=frozenset({frozen.host}))
        assert frozen.host in await upload(cluster, blobs.of(owned))


async def test_a_reader_does_not_wait_for_an_origin_that_has_just_begun_to_hang(
    four: Ring, blobs: Blobs
) -> None:
    async with client(four.config, check=False) as cluster:
        digest, path = blob = blobs.of(lambda _: True)
        await upload(cluster, blob)
        await cluster.drain(10)
        remote = await cluster.open(digest, deadline=soon())
        hanging = four.origin(remote._hosts[0])
        hanging.freeze()
        try:
            began = time.monotonic()
            parts = [bytes(part) async for part in remote.segments(0, remote.size)]
            assert b"".join(parts) == path.read_bytes()
            assert time.monotonic() - began < 5
        finally:
            hanging.thaw()


@pytest.mark.machine("ipv6")
async def test_a_ring_on_ipv6(tmp_path: Path, blobs: Blobs) -> None:
    with reserve(BLOCK) as ports:
        hosts = [join_address("::1", ports.first + 1 + 2 * n) for n in range(3)]
        ring = {"hosts": hosts, "replicas": 3, "write_quorum": 3, "health": WRITTEN}
        origins = [
            Origin(
                tmp_path / f"origin-{n}",
                {
                    "listen": host,
                    "peer": {"listen": join_address("::1", ports.first + 2 + 2 * n)},
                    "data_dir": str(tmp_path / f"origin-{n}" / "data"),
                    "origins": ring,
                },
            )
            for n, host in enumerate(hosts)
        ]
        try:
            for origin in origins:
                origin.start()
            for origin in origins:
                await asyncio.to_thread(origin.wait_ready)
            async with client(OriginsConfig.model_validate({**ring, "health": QUICKLY})) as cluster:
                digest, path = blob = blobs.of(lambda _: True, 2048 * KIB)
                assert sorted(await upload(cluster, blob)) == sorted(hosts)
                assert await cluster.stat(digest, deadline=soon()) == 2048 * KIB
                located = await cluster.metainfo(digest, deadline=soon())
                assert located is not None
                assert {peer.host for peer in located.peers} == {"::1"}
                remote = await cluster.open(digest, deadline=soon())
                parts = [bytes(part) async for part in remote.segments(0, remote.size)]
                assert b"".join(parts) == path.read_bytes()
                assert await cluster.readiness() == []
                origins[2].path(digest).unlink()
                copies = await cluster.ensure_copies(digest, hosts[:2], deadline=soon())
                assert copies == 3
        finally:
            for origin in origins:
                origin.kill()
