# SPDX-License-Identifier: Apache-2.0
"""Peers that keep to the protocol, and ask for ever: they are dropped, counted and kept away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.swarm.drops import Drop
from shoal.swarm.floods import FRAMES, OPENS
from shoal.swarm.link import MAX_OPENING
from shoal.swarm.wire import (
    Cancel,
    Close,
    Have,
    Message,
    Open,
    Ping,
    Pong,
    Reject,
    Request,
    Unknown,
)
from tests.integration.swarm_hosts import PATIENCE, Host, Puppet, Stage, pieces, until

CONTENT = pieces(30)
ABSENT = pieces(30, seed=9)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


async def flood(host: Host, puppet: Puppet, frames: Callable[[int], list[Message]]) -> int:
    """Say frames, and read what comes back, until dropped; returns how often they were said."""

    async def read() -> None:
        async for _ in puppet.listen():
            pass

    reading = asyncio.ensure_future(read())
    rounds = 0
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionError):
            while not reading.done():
                puppet.say(*frames(rounds))
                rounds += 1
                await puppet.writer.drain()
                await asyncio.sleep(0)
        await reading
    return rounds


async def is_dropped(
    stage: Stage, host: Host, puppet: Puppet, frames: Callable[[int], list[Message]]
) -> None:
    before = host.dropped(Drop.FLOOD)
    await flood(host, puppet, frames)
    await until(lambda: not host.node.links)
    assert host.dropped(Drop.FLOOD) == before + 1
    place = puppet.peer.address
    assert list(host.node.neighbours.bans.current(host.node.now())) == [f"{place} from 127.0.0.1"]
    await (await stage.host()).fetch(CONTENT, [host])


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([Ping()], id="pings"),
        pytest.param([Pong()], id="answers to nothing"),
        pytest.param([Have(0, 7)], id="the same piece shown again"),
        pytest.param([Have(1, 7)], id="pieces of a blob that is not here"),
        pytest.param([Cancel(0, 3)], id="cancels of nothing"),
        pytest.param([Request(0, 3), Cancel(0, 3)], id="asks and cancels"),
        pytest.param([Reject(0, 3)], id="rejects of nothing"),
        pytest.param([Close(9)], id="closes what is not open"),
        pytest.param([Unknown(9)], id="does not know what was not opened"),
        pytest.param([Request(0, index) for index in range(30)], id="requests"),
    ],
)
async def test_whoever_says_again_and_again_what_changes_nothing_is_dropped(
    stage: Stage, frames: list[Message]
) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)
    puppet.open(ABSENT, channel=1)
    await puppet.hear(Unknown)
    puppet.open(CONTENT, 1 << 7)
    await puppet.hear(Open)
    await is_dropped(stage, host, puppet, lambda _: frames)


async def test_a_peer_that_asks_for_a_piece_that_is_not_here_for_ever_is_dropped(
    stage: Stage,
) -> None:
    host = await stage.host()
    host.leech(ABSENT, [])
    host.put(CONTENT)
    puppet = await stage.dial(host)
    puppet.open(ABSENT)
    await is_dropped(stage, host, puppet, lambda _: [Request(0, 3)])


async def test_closing_and_opening_again_forgets_nothing_of_what_was_given(stage: Stage) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)
    before, got = host.dropped(Drop.FLOOD), 0
    with suppress(ConnectionError):
        for _ in range(10):
            puppet.open(CONTENT)
            await puppet.hear(Open)
            for index in range(CONTENT.count):
                puppet.say(Request(0, index))
                await puppet.hear_piece()
                got += 1
            puppet.say(Close(0))
            await puppet.hear(Close)
    assert got < 5 * CONTENT.count
    await until(lambda: not host.node.links)
    assert host.dropped(Drop.FLOOD) == before + 1


async def test_a_peer_that_opens_and_closes_for_ever_is_dropped(stage: Stage) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)

    def frames(number: int) -> list[Message]:
        return [Open(number, CONTENT.digest, CONTENT.count, bytes(4)), Close(number)]

    await is_dropped(stage, host, puppet, frames)


async def test_a_peer_that_opens_blobs_that_are_not_here_for_ever_is_dropped(
    stage: Stage,
) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)

    def frames(number: int) -> list[Message]:
        return [Open(number % 100, Digest.of(str(number).encode()), 1, b"\0")]

    await is_dropped(stage, host, puppet, frames)
    assert len(host.shelf.asked) <= OPENS + MAX_OPENING + 1


async def test_many_blobs_that_are_not_here_and_some_pings_are_borne(stage: Stage) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)
    for number in range(OPENS // 2):
        puppet.say(Open(number + 1, Digest.of(str(number).encode()), 1, b"\0"))
        await puppet.hear(Unknown)
    puppet.say(*(Ping() for _ in range(FRAMES // 2)))
    for _ in range(FRAMES // 2):
        await puppet.hear(Pong)
    puppet.open(CONTENT)
    await puppet.hear(Open)
    puppet.say(Request(0, 4))
    assert (await puppet.hear_piece())[1] == CONTENT.piece(4)
