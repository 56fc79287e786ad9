# SPDX-License-Identifier: Apache-2.0
"""A small blob that the disk does not give is fetched anew, as one with wrong bytes is."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown
from shoal.origin import local as local_module
from shoal.origin.client import OriginCluster
from shoal.origin.local import LocalBlobs, damaged
from shoal.origin.measuring import measure
from shoal.origin.receiving import Receiver
from shoal.origin.service import OriginService
from shoal.ring.config import OriginsConfig
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import Metainfo, metainfo_of
from shoal.web.client import HttpClient
from tests.unit.origin.no_backends import no_write_back

NAME = "127.0.0.1:1"
DATA = os.urandom(5000)
DIGEST = Digest.of(DATA)


class Host:
    def __init__(self, folder: Path, http: HttpClient) -> None:
        store = BlobStore(folder)
        self.local = LocalBlobs(store)
        ring = OriginCluster(http, OriginsConfig(hosts=[NAME], replicas=1, write_quorum=1))
        receiver = Receiver(store, idle_timeout=5.0, max_blob=0)
        writeback = no_write_back(NAME, self.local, ring)
        self.service = OriginService(NAME, self.local, receiver, ring, writeback)
        self.set_aside: list[Digest] = []
        self.local.on_damage(self.set_aside.append)
        temp = store.temp(DIGEST)
        temp.write_bytes(DATA)
        self.path = self.local.keep(temp, metainfo_of(DATA)).path


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    http = HttpClient(user_agent="test")
    yield Host(tmp_path, http)
    await http.close()


def broken(host: Host, monkeypatch: pytest.MonkeyPatch, *, for_good: bool) -> None:
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == host.path:
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(path)

    def measuring(file: FileIO, algorithm: str) -> Metainfo:
        if for_good:
            raise OSError(errno.EIO, "Input/output error")
        return measure(file, algorithm)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(local_module, "measure", measuring)


async def test_it_is_set_aside_to_be_fetched_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(host, monkeypatch, for_good=True)
    with pytest.raises(BlobUnknown):
        await host.service.open_own(DIGEST)
    assert host.set_aside == [DIGEST]
    assert damaged(host.path).exists()


async def test_after_an_error_of_a_moment_it_is_not_said_to_be_absent(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(host, monkeypatch, for_good=False)
    with pytest.raises(OSError, match="Input/output"):
        await host.service.open_own(DIGEST)
    assert host.set_aside == []
    assert host.path.exists()
