# SPDX-License-Identifier: Apache-2.0
"""Rate limits hold over real sockets, and are shared fairly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.integration.swarm_hosts import PATIENCE, Stage, pieces

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
    given, taken = ({side: RATE}, {}) if side == "egress" else ({}, {side: RATE})
    seed = await stage.seed(content, **given)
    leecher = await stage.host(**taken)
    began, used = time.monotonic(), time.process_time()
    await leecher.fetch(content, [seed])
    took, used = time.monotonic() - began, time.process_time() - used
    ideal = content.metainfo.size / RATE
    assert 0.93 * ideal < took < 1.1 * ideal
    assert used < took / 2, "it must sleep while it waits for tokens"


async def test_a_limit_is_shared_by_all_connections(stage: Stage) -> None:
    content = pieces(SIZE // 65536, piece_size=65536)
    seeds = [await stage.seed(content) for _ in range(3)]
    leecher = await stage.host(ingress=RATE)
    began = time.monotonic()
    await leecher.fetch(content, seeds)
    took = time.monotonic() - began
    ideal = content.metainfo.size / RATE
    assert 0.93 * ideal < took < 1.15 * ideal
    # Waiting for one's own limit is nobody's fault: nothing was asked for twice.
    assert leecher.traffic.bytes_received.total() < 1.1 * content.metainfo.size


async def test_a_small_blob_overtakes_a_large_one(stage: Stage) -> None:
    large = pieces(SIZE // 65536, piece_size=65536)
    small = pieces(2, seed=1)
    seed = await stage.seed(large, small, egress=2_000_000)
    busy, quick = await stage.host(), await stage.host()
    download = busy.leech(large, [seed])
    async with asyncio.timeout(PATIENCE):
        await download.pieces.wait(3)
        began = time.monotonic()
        await quick.fetch(small, [seed])
        assert time.monotonic() - began < 1.0
    assert not download.pieces.all_verified


async def test_a_blob_with_many_peers_leaves_half_to_one_with_few(stage: Stage) -> None:
    crowded = pieces(256, piece_size=65536)
    lonely = pieces(256, piece_size=65536, seed=1)
    seed = await stage.seed(crowded, lonely, egress=4_000_000)
    crowd = [await stage.host() for _ in range(4)]
    one = await stage.host()
    for host in crowd:
        host.leech(crowded, [seed])
    download = one.leech(lonely, [seed])
    async with asyncio.timeout(PATIENCE):
        began = time.monotonic()
        await download.pieces.wait(download.count // 8)
        while download.pieces.verified.bit_count() < 32:
            await asyncio.sleep(0.02)
        took = time.monotonic() - began
    # Alone it would take half a second; with a fifth of the rate, two and a half.
    assert took < 2.0


async def test_stopping_while_all_wait_for_tokens_leaves_nothing_behind(stage: Stage) -> None:
    content = pieces(64, piece_size=65536)
    seed = await stage.seed(content, egress=50_000)
    leecher = await stage.host(ingress=40_000)
    download = leecher.leech(content, [seed])
    async with asyncio.timeout(PATIENCE):
        await download.pieces.wait(0)
    await leecher.node.stop()
    assert leecher.node._buffers._used == 0
