# SPDX-License-Identifier: Apache-2.0
"""A copy that is sent over HTTP stays until it was sent."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.origin.eviction import BackedCopies
from shoal.origin.local import LocalBlobs
from shoal.origin.receiving import Receiver
from shoal.origin.service import OriginService
from shoal.ring.config import OriginsConfig
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import metainfo_of
from shoal.web.client import HttpClient
from tests.unit.origin.no_backends import no_write_back

NAME = "127.0.0.1:1"
DATA = os.urandom(300_000)
"""Too large for the memory cache."""
DIGEST = Digest.of(DATA)


class Host:
    def __init__(self, folder: Path, http: HttpClient) -> None:
        store = BlobStore(folder)
        self.local = LocalBlobs(store)
        ring = OriginCluster(http, OriginsConfig(hosts=[NAME], replicas=1, write_quorum=1))
        receiver = Receiver(store, idle_timeout=5.0, max_blob=0)
        writeback = no_write_back(NAME, self.local, ring)
        self.service = OriginService(NAME, self.local, receiver, ring, writeback)
        self.copies = BackedCopies(store, self.local, lambda _: False, lambda _: None)
        temp = store.temp(DIGEST)
        temp.write_bytes(DATA)
        self.local.keep(temp, metainfo_of(DATA), backed=["files|team/app"])

    def in_use(self) -> bool:
        [copy] = self.local.copies()
        return copy.in_use


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    http = HttpClient(user_agent="test")
    yield Host(tmp_path, http)
    await http.close()


async def test_it_is_neither_evicted_nor_swept_while_it_is_sent(host: Host) -> None:
    first, second = [await host.service.open_own(DIGEST) for _ in range(2)]
    assert host.in_use()
    assert not await host.copies.evict(DIGEST)
    assert host.local.give_up(DIGEST, cutoff=2e12) is None
    await first.close()
    assert not await host.copies.evict(DIGEST)
    await second.close()
    assert not host.in_use()
    assert await host.copies.evict(DIGEST)


async def test_who_leaves_while_it_is_opened_holds_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun, closed = threading.Event(), threading.Event(), threading.Event()
    opening, close = host.service._open, os.close
    file = -1

    def slowly(digest: Digest) -> object:
        nonlocal file
        begun.set()
        assert go.wait(10)
        found = opening(digest)
        assert isinstance(found, tuple)
        file = found[0]
        return found

    def closing(descriptor: int) -> None:
        close(descriptor)
        if descriptor == file:
            closed.set()

    monkeypatch.setattr(host.service, "_open", slowly)
    monkeypatch.setattr(os, "close", closing)
    reading = asyncio.create_task(host.service.open_own(DIGEST))
    assert await asyncio.to_thread(begun.wait, 10)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not host.in_use()
    go.set()
    assert await asyncio.to_thread(closed.wait, 10)
