# SPDX-License-Identifier: Apache-2.0
"""Rate limits hold over real sockets, and are shared fairly."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.swarm_hosts import PATIENCE, Stage, pieces, until

RATE = 8_000_000
SIZE = 16 * 1024 * 1024
"""Two seconds and a bit: the burst that is saved up at the start hardly counts."""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


@pytest.mark.parametrize("side", ["ingress", "egress", "per_blob"])
async def test_a_limit_is_kept_to_and_used_up(stage: Stage, side: str) -> None:
    content = pieces(SIZE // 65536, piece_size=65536)
    limit: dict[str, Any] = {side: RATE}
    seed = await stage.seed(content, **(limit if side == "egress" else {}))
    leecher = await stage.host(**({} if side == "egress" else limit))
    began, used = time.monotonic(), time.process_time()
    await leecher.fetch(content, [seed])
    took, used = time.monotonic() - began, time.process_time() - used
    ideal = content.metainfo.size / RATE
    # The upper bound leaves room for a busy machine; the exact rate is tested in virtual time.
    assert 0.93 * ideal < took < 1.5 * ideal
    assert used < took / 2, "it must sleep while it waits for tokens"


async def test_a_limit_is_shared_by_all_connections(stage: Stage) -> None:
    content = pieces(SIZE // 65536, piece_size=65536)
    seeds = [await stage.seed(content) for _ in range(3)]
    leecher = await stage.host(ingress=RATE)
    began = time.monotonic()
    await leecher.fetch(content, seeds)
    took = time.monotonic() - began
    ideal = content.metainfo.size / RATE
    assert 0.93 * ideal < took < 1.5 * ideal
    # Waiting for one's own limit is nobody's fault: nothing was asked for twice.
    assert leecher.traffic.bytes_received.total() < 1.1 * content.metainfo.size


async def test_a_small_blob_overtakes_a_large_one(stage: Stage) -> None:
    large = pieces(SIZE // 65536, piece_size=65536)
    small = pieces(2, seed=1)
    seed = await stage.seed(large, small, egress=2_000_000)
    busy, quick = await stage.host(), await stage.host()
    download = busy.leech(large, [seed])
    async with asyncio.timeout(PATIENCE):
        while download.pieces.verified.bit_count() < 3:  # noqa: ASYNC110 nothing tells of it
            await asyncio.sleep(0.01)
        began = time.monotonic()
        await quick.fetch(small, [seed])
        assert time.monotonic() - began < 1.0
    assert not download.pieces.all_verified


async def test_stopping_while_all_wait_for_tokens_leaves_nothing_behind(stage: Stage) -> None:
    content = pieces(64, piece_size=65536)
    seed = await stage.seed(content, egress=50_000)
    leecher = await stage.host(ingress=40_000)
    leecher.leech(content, [seed])
    await until(lambda: leecher.node.links and leecher.node.links[seed.peer.id].connection.paused)
    await leecher.node.stop()
    assert leecher.node._buffers._used == 0


async def test_no_more_is_received_than_can_be_checked(stage: Stage) -> None:
    content = pieces(64)
    leecher = await stage.host()
    release = threading.Event()
    try:
        for _ in range(2):
            leecher.node.executor.submit(release.wait, PATIENCE)  # As a disk that takes nothing.
        leecher.leech(content, [await stage.seed(content)])
        await until(lambda: any(it.connection.paused for it in leecher.node.links.values()))
        received = leecher.traffic.bytes_received.total()
        # Two have a thread, four wait for one, and the rest came in one turn of the event loop.
        assert received <= 12 * content.metainfo.piece_size
    finally:
        release.set()
    await leecher.whole(content)
    assert leecher.traffic.bytes_received.total() == content.metainfo.size
