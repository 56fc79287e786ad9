# SPDX-License-Identifier: Apache-2.0
"""A copy that was set aside is the last thing to be thrown away."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.origin import local as local_module
from shoal.origin.bandwidth import Bandwidth
from shoal.origin.local import LocalBlobs, damaged
from shoal.origin.measuring import measure
from shoal.origin.refetch import Refetcher
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import Metainfo, metainfo_of
from shoal.web.failures import NotFound

DATA = os.urandom(5000)
DIGEST = Digest.of(DATA)


class Elsewhere:
    """Another member's copy."""

    size = len(DATA)

    async def segments(self, start: int, stop: int) -> AsyncIterator[bytes]:
        yield DATA[start:stop]


class Host:
    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(folder)
        self.local = LocalBlobs(self.store)
        self.owner = True
        self.elsewhere = False
        self.refetcher = Refetcher(
            self.local, self._find, self._store, lambda _: self.owner, Bandwidth(0)
        )
        self.path = self.keep()

    def keep(self) -> Path:
        temp = self.store.temp(DIGEST)
        temp.write_bytes(DATA)
        return self.local.keep(temp, metainfo_of(DATA)).path

    async def _find(self, digest: Digest) -> Elsewhere:
        if not self.elsewhere:
            raise NotFound("GET", f"/internal/blobs/{digest}", "nowhere")
        return Elsewhere()

    async def _store(
        self, digest: Digest, source: AsyncIterator[bytes], size: int, used: float | None
    ) -> None:
        assert [part async for part in source] == [DATA]
        self.keep()

    async def fetch(self) -> None:
        await self.refetcher.look()
        await self.refetcher._fetch(DIGEST)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def rot(path: Path) -> None:
    path.write_bytes(DATA[:-1] + b"?")


def broken(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The disk cannot read, so many times."""
    left = [times]

    def read(file: FileIO, algorithm: str) -> Metainfo:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return measure(file, algorithm)

    monkeypatch.setattr(local_module, "measure", read)


def test_an_error_of_a_moment_does_not_cost_the_copy(host: Host) -> None:
    host.local.set_aside(DIGEST)
    assert host.local.find(DIGEST) is not None


async def test_a_copy_that_could_not_be_read_is_put_back_when_it_is_the_last_and_good(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, 1)
    host.local.set_aside(DIGEST)
    assert host.local.find(DIGEST) is None
    await host.fetch()
    assert host.local.find(DIGEST) is not None
    assert host.path.read_bytes() == DATA
    assert not host.refetcher.lacking
    assert not host.refetcher.lost


@pytest.mark.parametrize("owner", [True, False])
async def test_what_is_nowhere_else_stays_aside(host: Host, *, owner: bool) -> None:
    """Also on a host that is no owner: it may be the only one that was not wiped."""
    host.owner = owner
    rot(host.path)
    assert not host.local.recheck(DIGEST)
    await host.fetch()
    assert damaged(host.path).exists()
    assert host.refetcher.lost == {DIGEST}
    host.elsewhere = True
    await host.fetch()
    assert not damaged(host.path).exists()
    assert (host.local.find(DIGEST) is not None) is owner
    assert not host.refetcher.lost


async def test_a_disk_that_lost_ten_thousand_blobs_does_not_stop_the_event_loop(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [Digest("sha256", f"{number:064x}") for number in range(10_000)]
    monkeypatch.setattr(host.local, "damaged_copies", lambda: many)
    began = time.process_time()
    await host.refetcher.look()
    assert time.process_time() - began < 1.0
    assert len(host.refetcher.lacking) == len(many)


def test_a_good_copy_that_came_meanwhile_is_not_set_aside(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    rot(host.path)

    def read(file: FileIO, algorithm: str) -> Metainfo:
        found = measure(file, algorithm)
        host.keep()  # a push of the same blob
        return found

    monkeypatch.setattr(local_module, "measure", read)
    assert host.local.recheck(DIGEST)
    assert host.path.read_bytes() == DATA
    assert not damaged(host.path).exists()


def test_a_good_copy_in_the_place_of_one_that_cannot_be_read_is_not_set_aside(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: FileIO, __: str) -> Metainfo:
        host.keep()  # a push of the same blob
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(local_module, "measure", read)
    host.local.set_aside(DIGEST)
    assert host.path.read_bytes() == DATA
    assert not damaged(host.path).exists()


async def test_a_volume_that_fails_does_not_end_the_fetching(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    discard, failures = host.local.discard_damaged, [OSError(errno.EIO, "Input/output error")]

    def failing(digest: Digest) -> None:
        if failures:
            raise failures.pop()
        discard(digest)

    monkeypatch.setattr(host.local, "discard_damaged", failing)
    rot(host.path)
    assert not host.local.recheck(DIGEST)
    host.elsewhere = True
    running = asyncio.create_task(host.refetcher.run(0.05))
    async with asyncio.timeout(10):
        while failures or damaged(host.path).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
