# SPDX-License-Identifier: Apache-2.0
"""In which order the blobs that a host fetches at the same time come, over a real socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.swarm.order import Place
from shoal.swarm.wire import Open, Request
from tests.integration.swarm_hosts import Puppet, Stage, pieces

PIECE = 64 * 1024
COUNT = 20
AHEAD = 2
"""Pieces that the peer is asked for in advance."""

BLOBS = [pieces(COUNT, piece_size=PIECE, seed=seed) for seed in range(3)]
ONE, TWO = Digest.of(b"one image"), Digest.of(b"another image")


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


async def asked(stage: Stage, *places: Place) -> list[int]:
    """Fetch blobs that stand there of one peer: which ones it was asked for a piece of, in turn."""
    order: list[int] = []

    async def play(puppet: Puppet) -> None:
        """Once all are open, give pieces one at a time, in the order in which they are wanted."""
        wanted = []
        for channel, content in enumerate(BLOBS):
            puppet.open(content, content.full, channel=channel)
        opened = 0
        async for message, _ in puppet.listen():
            opened += isinstance(message, Open)
            if isinstance(message, Request):
                wanted.append(message)
            if opened == len(BLOBS):
                order.extend(request.channel for request in wanted)
                for request in wanted:
                    puppet.give(BLOBS[request.channel], request.index, channel=request.channel)
                wanted.clear()

    seed = await stage.puppet(play)
    leecher = await stage.host(pipeline=AHEAD * PIECE)
    for content, place in zip(BLOBS, places, strict=True):
        file = leecher.file(content)
        leecher.node.add(file).place = place
        leecher.node.leech(file, [seed.peer])
    for content in BLOBS:
        await leecher.whole(content)
    return order


async def test_layers_of_an_image_come_in_their_order(stage: Stage) -> None:
    order = await asked(stage, Place(ONE, 2), Place(ONE, 1), Place(ONE, 0))
    begun, order = order[:AHEAD], order[AHEAD:]
    # What was asked for before the others were known is not taken back.
    assert sorted(order, reverse=True) == order
    assert Counter(begun) + Counter(order) == {0: COUNT, 1: COUNT, 2: COUNT}


async def test_images_take_turns_and_a_second_layer_waits_for_its_first(stage: Stage) -> None:
    order = await asked(stage, Place(ONE, 0), Place(ONE, 1), Place(TWO, 0))
    both = order[AHEAD : 2 * COUNT - AHEAD]
    assert set(both) == {0, 2}
    assert all(one != other for one, other in pairwise(both))
    assert set(order[2 * COUNT :]) == {1, 2} or set(order[2 * COUNT :]) == {1}
