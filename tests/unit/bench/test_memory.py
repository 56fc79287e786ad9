# SPDX-License-Identifier: Apache-2.0
"""The page cache that a bench holds until what it measures needs the memory."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from shoal.bench.memory import PageCache, warm_memory

MIB = 1024 * 1024
AHEAD = 256 * MIB


def test_a_page_cache_is_given_back_from_its_end_on_and_no_further_than_it_goes(
    tmp_path: Path,
) -> None:
    cache = PageCache(tmp_path / "scratch", 3 * MIB)
    assert (tmp_path / "scratch").stat().st_size == 3 * MIB
    assert cache.took_s > 0
    cache.give_back(MIB)
    assert (tmp_path / "scratch").stat().st_size == cache.left == 2 * MIB
    cache.give_back(-MIB)
    assert cache.left == 2 * MIB
    cache.give_back(5 * MIB)
    assert (tmp_path / "scratch").stat().st_size == cache.left == 0
    cache.close()
    assert not (tmp_path / "scratch").exists()


async def test_memory_is_given_back_as_others_take_what_was_free(tmp_path: Path) -> None:
    whole, used = AHEAD + 8 * MIB, 0
    looked = asyncio.Event()

    def held() -> int:
        return (tmp_path / "scratch").stat().st_size

    def free() -> int:
        looked.set()
        return 1000 * MIB + whole - held() - used

    async def settled() -> int:
        before = -1
        while before != held():
            before = held()
            for _ in range(2):
                looked.clear()
                await looked.wait()
        return before

    async with asyncio.timeout(10), warm_memory(tmp_path, whole, free=free):
        assert await settled() == 8 * MIB
        used += 3 * MIB
        assert await settled() == 5 * MIB
        used += 4 * MIB
        assert await settled() == MIB
    assert not os.listdir(tmp_path)


async def test_nothing_is_left_when_what_is_measured_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        async with warm_memory(tmp_path, MIB):
            raise RuntimeError
    assert not os.listdir(tmp_path)
