# SPDX-License-Identifier: Apache-2.0
"""Origins that see different rings: each may take another one for an owner, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.origin.config import RepairConfig
from shoal.origin.local import LocalBlobs
from shoal.origin.repair import Repairer
from shoal.origin.retention import Copy
from shoal.ring.rendezvous import owners
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import metainfo_of
from shoal.web.failures import Unreachable

NAMES = [f"o{number}:1" for number in range(5)]
REPLICAS = 2
OLD = 7200.0


class Host:
    """One origin: its copies, the members that it sees, and its repairer."""

    def __init__(self, folder: Path, name: str, hosts: dict[str, Host]) -> None:
        self.name = name
        self.hosts = hosts
        self.view = list(NAMES)
        self.down = False
        self.store = BlobStore(folder)
        self.local = LocalBlobs(self.store)
        self.repairer = Repairer(
            name,
            self.local,
            self,
            RepairConfig(spare_grace=0.0, takeover=0.001),
            forget=lambda _: None,
            pinned=lambda _: False,
            wanted=None,
            young=0.0,
        )

    def keep(self, data: bytes, used: float) -> None:
        temp = self.store.temp()
        temp.write_bytes(data)
        self.local.keep(temp, metainfo_of(data), used=used)

    # -- what the repairer asks of its peers

    replicas = REPLICAS

    def rings(self, digests: Iterable[Digest]) -> dict[Digest, list[str]]:
        return {digest: owners(str(digest), self.view, len(self.view)) for digest in digests}

    async def peer(self, host: str) -> Host:
        await asyncio.sleep(random.uniform(0, 0.002))
        if self.hosts[host].down:
            raise Unreachable("POST", host, "stopped")
        return self.hosts[host]

    async def sizes(self, host: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        return (await self.peer(host)).local.sizes(digests)

    async def hold(
        self, host: str, digests: Sequence[Digest], *, kept: bool, unbacked: bool
    ) -> dict[Digest, int]:
        sizes = (await self.peer(host)).local.hold(digests, 300.0, kept=kept, unbacked=unbacked)
        await asyncio.sleep(random.uniform(0, 0.002))
        return sizes

    async def send(self, host: str, copy: Copy) -> bool:
        peer = await self.peer(host)
        whole = self.local.find(copy.digest)
        if whole is None:
            return False
        peer.keep(whole.blob.path.read_bytes(), copy.last_used)
        return True


@pytest.mark.parametrize("seed", range(4))
async def test_no_blob_ever_has_fewer_copies_than_replicas(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    hosts: dict[str, Host] = {}
    for name in NAMES:
        hosts[name] = Host(tmp_path / name[:2], name, hosts)
    blobs = [os.urandom(100) for _ in range(20)]
    for data in blobs:
        for name in rng.sample(NAMES, rng.randint(REPLICAS, len(NAMES))):
            hosts[name].keep(data, time.time() - OLD)
    for _ in range(8):
        for host in hosts.values():
            seen = rng.sample(NAMES, rng.randint(REPLICAS, len(NAMES)))
            host.view = sorted({host.name, *seen})
            host.down = rng.random() < 0.15
        await asyncio.gather(*(h.repairer.look_now() for h in hosts.values() if not h.down))
        for data in blobs:
            digest = Digest.of(data)
            copies = [host.name for host in hosts.values() if host.local.find(digest)]
            assert len(copies) >= REPLICAS, f"{digest} is on {copies} alone"
    removed = sum(host.repairer.last.removed for host in hosts.values() if host.repairer.last)
    for host in hosts.values():
        host.view, host.down, host.local._held = list(NAMES), False, {}
    for _ in range(3):
        for host in hosts.values():
            await host.repairer.look_now()
            host.local._held.clear()
            removed += host.repairer.last.removed if host.repairer.last else 0
    assert removed, "nothing was ever in excess: the test shows nothing"
    for data in blobs:
        digest = Digest.of(data)
        holders = {host.name for host in hosts.values() if host.local.find(digest)}
        assert holders == set(owners(str(digest), NAMES, REPLICAS)), "they do not come to rest"
