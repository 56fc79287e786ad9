# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from shoal.store.budget import ByteBudget


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_the_limit_is_given_out_and_in_turn() -> None:
    budget = ByteBudget(10)
    await budget.take(6)
    assert budget.take_now(4)
    order: list[str] = []

    async def take(name: str, size: int) -> None:
        await budget.take(size)
        order.append(name)

    large, small = asyncio.create_task(take("large", 8)), asyncio.create_task(take("small", 1))
    await settled()
    budget.give_back(4)
    await settled()
    # A small wish that would fit does not overtake: the large one would wait for ever.
    assert order == []
    assert not budget.take_now(1)
    budget.give_back(6)
    await asyncio.gather(large, small)
    assert order == ["large", "small"]
    assert budget.taken == 9


async def test_more_than_the_limit_is_given_alone() -> None:
    budget = ByteBudget(10)
    await budget.take(1)
    large = asyncio.create_task(budget.take(25))
    await settled()
    assert not large.done()
    budget.give_back(1)
    await large
    assert not budget.take_now(1)
    budget.give_back(25)
    assert budget.taken == 0


@pytest.mark.parametrize("granted", [False, True])
async def test_one_that_is_cancelled_takes_nothing_and_lets_the_next_one_on(granted: bool) -> None:
    budget = ByteBudget(10)
    await budget.take(10)
    first, second = asyncio.create_task(budget.take(7)), asyncio.create_task(budget.take(3))
    await settled()
    if granted:
        budget.give_back(10)  # and cancelled before it runs
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    if not granted:
        budget.give_back(10)
    await second
    assert budget.taken == 3
