# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with one copy, or one member, keeps no other from being repaired."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Sequence
from io import FileIO
from pathlib import Path

import pytest
from aiohttp import web

from shoal.model.digest import Digest
from shoal.origin import local as local_module
from shoal.origin.bandwidth import Bandwidth
from shoal.origin.client import OriginCluster
from shoal.origin.config import RepairConfig
from shoal.origin.local import LocalBlobs, damaged
from shoal.origin.measuring import measure
from shoal.origin.repair import Repairer
from shoal.origin.repair_peers import RepairPeers
from shoal.origin.service import BackendTerms
from shoal.ring.config import OriginsConfig
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import Metainfo, metainfo_of
from shoal.web.client import HttpClient
from shoal.web.serving import listening

ME = "127.0.0.1:1"


class Other:
    """A member that takes what it is given."""

    def __init__(self) -> None:
        self.host = ""
        self.has: dict[str, int] = {}
        self.asked = 0
        self.app = web.Application()
        self.app.router.add_post("/internal/blobs/stat", self._stat)
        self.app.router.add_put("/internal/blobs/{digest}", self._put)

    async def _stat(self, request: web.Request) -> web.Response:
        self.asked += 1
        digests = (await request.json())["digests"]
        return web.json_response({"present": {d: self.has[d] for d in digests if d in self.has}})

    async def _put(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.has[request.match_info["digest"]] = len(body)
        return web.Response(status=201)


@pytest.fixture
async def others() -> AsyncIterator[list[Other]]:
    others = [Other(), Other()]
    apps = [(other.app, "127.0.0.1:0") for other in others]
    async with listening(apps, grace=1.0) as addresses:
        for other, address in zip(others, addresses, strict=True):
            other.host = address
        yield others


@pytest.fixture
def other(others: list[Other]) -> Other:
    return others[0]


class Host:
    """This origin, which is not in want of anything itself."""

    def __init__(
        self, folder: Path, others: Sequence[Other], http: HttpClient, config: RepairConfig
    ) -> None:
        self.store = BlobStore(folder)
        self.local = LocalBlobs(self.store)
        hosts = [ME, *(other.host for other in others)]
        ring = OriginsConfig(hosts=hosts, replicas=len(hosts), write_quorum=1)
        self.now = 1e9
        self.cluster = cluster = OriginCluster(http, ring)
        peers = RepairPeers(
            ME,
            cluster,
            cluster.ring,
            self.local,
            Bandwidth(0),
            concurrency=config.concurrency,
            terms=self._terms,
        )
        self.repairer = Repairer(
            ME,
            self.local,
            peers,
            config,
            forget=lambda _: None,
            pinned=lambda _: False,
            wanted=None,
            young=0.0,
            clock=lambda: self.now,
        )

    async def _terms(self, _: Digest) -> BackendTerms:
        return BackendTerms((), (), unbacked=False)

    def keep(self, data: bytes) -> Path:
        temp = self.store.temp()
        temp.write_bytes(data)
        return self.local.keep(temp, metainfo_of(data)).path


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


async def test_a_copy_that_the_disk_does_not_give_keeps_no_other_from_being_sent(
    tmp_path: Path, other: Other, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, [other], http, RepairConfig())
    paths = sorted(host.keep(b"%d" % number) for number in range(40))
    bad = paths[0].stat().st_ino
    sendfile = os.sendfile

    def send(to: int, file: int, *rest: int) -> int:
        if os.fstat(file).st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return sendfile(to, file, *rest)

    def read(file: FileIO, algorithm: str) -> Metainfo:
        if os.fstat(file.fileno()).st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return measure(file, algorithm)

    monkeypatch.setattr(os, "sendfile", send)
    monkeypatch.setattr(local_module, "measure", read)
    look = await host.repairer.look_now()
    assert len(other.has) == len(paths) - 1
    assert not look.unasked
    assert damaged(paths[0]).exists(), "what cannot be read is to be fetched anew"


async def test_a_member_that_comes_and_goes_does_not_keep_the_others_from_their_copies(
    tmp_path: Path, other: Other, http: HttpClient
) -> None:
    host = Host(tmp_path, [other], http, RepairConfig(interval=0.2))
    host.keep(b"data")
    running = asyncio.create_task(host.repairer.run())
    try:
        async with asyncio.timeout(10):
            while other.asked < 3:
                host.repairer.look({"127.0.0.1:9"}, why="it was away")
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_clock_that_is_set_back_does_not_put_off_who_acts_in_place_of_another(
    tmp_path: Path, others: list[Other], http: HttpClient
) -> None:
    host = Host(tmp_path, others, http, RepairConfig(takeover=0.2))
    has, lacks = others
    data = next(
        data
        for data in map(str.encode, map(str, range(100)))
        if host.cluster.ring.ring(Digest.of(data))[:2] == [has.host, ME]
    )
    host.keep(data)
    has.has[str(Digest.of(data))] = len(data)
    assert (await host.repairer.look_now()).wait == pytest.approx(0.2)
    host.now -= 86_400
    await asyncio.sleep(0.25)
    await host.repairer.look_now()
    assert lacks.has
