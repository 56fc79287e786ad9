# SPDX-License-Identifier: Apache-2.0
"""What follows when a copy turns out to be damaged."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.origin.config import OriginConfig, ScrubConfig
from shoal.origin.local import LocalBlobs
from shoal.origin.receiving import Receiver
from shoal.origin.service import OriginService
from shoal.origin.upkeep import Upkeep
from shoal.ring.config import OriginsConfig
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import metainfo_of
from shoal.web.client import HttpClient
from tests.unit.origin.no_backends import no_write_back

NAME = "127.0.0.1:1"
DATA = os.urandom(5000)
DIGEST = Digest.of(DATA)


async def test_a_copy_that_is_set_aside_is_given_to_no_peer_any_more(tmp_path: Path) -> None:
    """Its file stays open at the peer endpoint, which took it for what this process had written."""
    ring = OriginsConfig(hosts=[NAME], replicas=1, write_quorum=1)
    config = OriginConfig(
        listen=NAME, data_dir=tmp_path, origins=ring, scrub=ScrubConfig(bandwidth=0)
    )
    http = HttpClient(user_agent="test")
    store = BlobStore(tmp_path)
    local = LocalBlobs(store)
    cluster = OriginCluster(http, ring)
    receiver = Receiver(store, idle_timeout=5.0, max_blob=0)
    service = OriginService(NAME, local, receiver, cluster, no_write_back(NAME, local, cluster))
    forgotten: asyncio.Queue[Digest] = asyncio.Queue()
    upkeep = Upkeep(
        config,
        cluster,
        store,
        local,
        service,
        forget=forgotten.put_nowait,
        wanted=None,
        debts=None,
        repositories=lambda _: (),
    )
    temp = store.temp(DIGEST)
    temp.write_bytes(DATA)
    path = local.keep(temp, metainfo_of(DATA)).path
    upkeep.start()
    try:
        path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
        assert not await asyncio.to_thread(local.recheck, DIGEST)
        async with asyncio.timeout(5):
            assert await forgotten.get() == DIGEST
    finally:
        await upkeep.stop()
        await http.close()
