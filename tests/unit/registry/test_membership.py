# SPDX-License-Identifier: Apache-2.0
"""Work that only members of a repository may learn of."""

from __future__ import annotations

import asyncio

import pytest

from shoal.model.digest import Digest
from shoal.registry.membership import for_members
from shoal.store.memory import MemoryCache


async def answer(member: bool) -> bool:
    return member


async def test_a_member_gets_the_outcome() -> None:
    async def work() -> int:
        return 7

    assert await for_members(answer(True), work()) == 7


async def test_work_begins_before_the_answer_is_there() -> None:
    begun = asyncio.Event()

    async def work() -> int:
        begun.set()
        return 7

    async def member() -> bool:
        await begun.wait()
        return True

    async with asyncio.timeout(10):
        assert await for_members(member(), work()) == 7


async def test_who_is_no_member_waits_for_nothing_and_learns_nothing() -> None:
    ended = asyncio.Event()

    async def hanging() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 7

    async def member() -> bool:
        await asyncio.sleep(0)
        return False

    async def failing() -> int:
        raise ValueError("only members may know")

    async with asyncio.timeout(10):
        assert await for_members(member(), hanging()) is None
        await ended.wait()
        assert await for_members(member(), failing()) is None


async def test_a_failure_is_told_to_members() -> None:
    async def failing() -> int:
        raise ValueError("what went wrong")

    with pytest.raises(ValueError, match="what went wrong"):
        await for_members(answer(True), failing())


async def test_when_nobody_knows_who_is_a_member_the_work_ends() -> None:
    ended = asyncio.Event()

    async def hanging() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 7

    async def nobody_knows() -> bool:
        await asyncio.sleep(0)
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError):
        await for_members(nobody_knows(), hanging())
    async with asyncio.timeout(10):
        await ended.wait()


def test_the_cache_holds_what_was_used_last_within_its_bytes() -> None:
    cache = MemoryCache(4000)
    bodies = {Digest.of(bytes([number])): bytes(1000) for number in range(3)}
    first, second, third = bodies
    cache.keep(first, bodies[first])
    cache.keep(second, bodies[second])
    assert cache.get(first) == bodies[first]
    cache.keep(third, bodies[third])
    assert (cache.get(first), cache.get(second)) == (bodies[first], None)


@pytest.mark.parametrize("capacity", [0, 1000])
def test_what_is_larger_than_the_cache_is_not_kept(capacity: int) -> None:
    cache = MemoryCache(capacity)
    cache.keep(Digest.of(b""), bytes(1000))
    assert cache.get(Digest.of(b"")) is None
