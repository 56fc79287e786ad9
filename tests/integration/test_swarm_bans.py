# SPDX-License-Identifier: Apache-2.0
"""Who does harm stays away under whatever name, and nobody else in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from shoal.swarm.bans import BORNE
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.view import swarm_view
from shoal.swarm.wire import VERSION, Hello, Ping, Pong, Request
from tests.integration.swarm_hosts import Content, Host, Puppet, Stage, pieces, until

CONTENT = pieces(30)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


async def lie(puppet: Puppet, content: Content = CONTENT) -> None:
    """Show everything, and send zeros until dropped."""
    puppet.open(content, content.full)
    while True:
        index = (await puppet.hear(Request)).index
        puppet.give(content, index, data=bytes(content.metainfo.length(index)))


async def come_and_lie(stage: Stage, host: Host, peer: PeerInfo) -> None:
    """A stranger comes by itself, and is dropped for what it sends."""
    puppet = await stage.dial(host, peer=peer, greet=False)
    puppet.say(Hello(VERSION, peer))
    await puppet.hear(Hello)
    with pytest.raises(ConnectionError):
        await lie(puppet)


async def is_let_in(stage: Stage, host: Host, peer: PeerInfo) -> bool:
    puppet = await stage.dial(host, peer=peer, greet=False)
    puppet.say(Hello(VERSION, peer), Ping())
    try:
        await puppet.hear(Pong)
    except ConnectionError:
        return False
    await puppet.hang_up()
    await until(lambda: peer.id not in host.node.links)
    return True


def stranger(port: int) -> PeerInfo:
    return PeerInfo(new_peer_id(), "127.0.0.1", port)


# -- whom to dial


async def test_a_liar_that_says_another_id_each_time_is_dialed_once(stage: Stage) -> None:
    liar, seed = await stage.puppet(lie, name=new_peer_id), await stage.seed(CONTENT)
    leecher = await stage.host()
    blob = leecher.leech(CONTENT, [liar])
    await until(lambda: leecher.keeps_away(liar))
    for _ in range(5):
        # The tracker hands it out again, under its old id and under new ones.
        again = PeerInfo(new_peer_id(), liar.peer.host, liar.peer.port)
        blob.add_peers([liar.peer, again])
        await until(lambda: not leecher.node.neighbours.dialing)
    assert liar.connections == 1
    assert list(leecher.node.neighbours.bans.current(leecher.node.now())) == [liar.peer.address]
    blob.add_peers([seed.peer])
    await leecher.whole(CONTENT)


async def test_a_liar_with_another_name_for_its_place_is_asked_for_nothing(stage: Stage) -> None:
    trusted: list[Puppet] = []

    async def play(puppet: Puppet) -> None:
        puppet.open(CONTENT, CONTENT.full)
        index = (await puppet.hear(Request)).index
        trusted.append(puppet)
        puppet.give(CONTENT, index, data=bytes(CONTENT.metainfo.length(index)))
        await puppet.dropped()

    liar = await stage.puppet(play)
    leecher = await stage.host()
    blob = leecher.leech(CONTENT, [liar])
    await until(lambda: leecher.keeps_away(liar))
    before = leecher.refused("kept_away")
    blob.add_peers([PeerInfo(new_peer_id(), "LocalHost", liar.peer.port)])
    await until(lambda: leecher.refused("kept_away") == before + 1)
    await until(lambda: not leecher.node.neighbours.strangers)
    assert leecher.node.links == {}
    assert liar.connections == 2
    assert len(trusted) == 1


async def test_a_liar_that_hangs_up_before_its_piece_is_checked_is_kept_away(stage: Stage) -> None:
    content = pieces(1)

    async def play(puppet: Puppet) -> None:
        puppet.open(content, content.full)
        await puppet.hear(Request)
        puppet.give(content, 0, data=bytes(content.metainfo.length(0)))
        await puppet.writer.drain()

    liar = await stage.puppet(play)
    leecher = await stage.host()
    leecher.leech(content, [liar])
    await until(lambda: leecher.keeps_away(liar))


async def test_an_honest_peer_is_dialed_though_a_liar_came_with_its_id(stage: Stage) -> None:
    seed = await stage.seed(CONTENT)
    leecher = await stage.host()
    blob = leecher.leech(CONTENT, [])
    await come_and_lie(stage, leecher, PeerInfo(seed.peer.id, "127.0.0.1", 4242))
    assert not leecher.keeps_away(seed)
    blob.add_peers([seed.peer])
    await leecher.whole(CONTENT)


async def test_an_honest_peer_is_dialed_though_a_liar_came_with_its_id_and_place(
    stage: Stage,
) -> None:
    seed = await stage.seed(CONTENT)
    leecher = await stage.host()
    blob = leecher.leech(CONTENT, [])
    puppet = await stage.dial(leecher, peer=seed.peer)
    await until(lambda: leecher.node.links)
    # Connected as the seed, it keeps the seed from being dialed, until it lies.
    blob.add_peers([seed.peer])
    with pytest.raises(ConnectionError):
        await lie(puppet)
    assert not leecher.keeps_away(seed)
    await leecher.whole(CONTENT)


async def test_a_dialed_liar_with_the_id_of_a_candidate_does_not_take_its_place(
    stage: Stage,
) -> None:
    seed = await stage.seed(CONTENT)
    liar = await stage.puppet(lie, name=lambda: seed.peer.id)
    leecher = await stage.host()
    before = leecher.refused("identity")
    blob = leecher.node.leech(leecher.file(CONTENT), [liar.peer, seed.peer])
    await leecher.whole(CONTENT)
    assert leecher.received_from(seed) == CONTENT.metainfo.size
    assert leecher.refused("identity") == before + 1
    assert not blob.picker


# -- whom to let in


async def test_a_stranger_with_the_id_of_a_candidate_elsewhere_is_refused(stage: Stage) -> None:
    gate = asyncio.Event()

    async def play(puppet: Puppet) -> None:
        puppet.open(CONTENT)
        await gate.wait()

    honest = await stage.puppet(play)
    leecher = await stage.host()
    blob = leecher.leech(CONTENT, [])
    blob.candidates[honest.peer.id] = honest.peer
    before = leecher.refused("identity")
    assert not await is_let_in(stage, leecher, PeerInfo(honest.peer.id, "127.0.0.1", 4242))
    assert leecher.refused("identity") == before + 1
    gate.set()


async def test_a_stranger_that_has_an_id_already_makes_way_for_the_peer_at_its_place(
    stage: Stage,
) -> None:
    seed = await stage.seed(CONTENT)
    leecher = await stage.host()
    thief = await stage.dial(leecher, peer=PeerInfo(seed.peer.id, "127.0.0.1", 4242))
    await until(lambda: leecher.node.links)
    blob = leecher.leech(CONTENT, [seed])
    await thief.dropped()
    await leecher.whole(CONTENT)
    assert leecher.received_from(seed) == CONTENT.metainfo.size
    assert not blob.picker


async def test_whoever_came_and_lied_does_not_come_again_but_its_neighbours_do(
    stage: Stage,
) -> None:
    leecher = await stage.host()
    leecher.leech(CONTENT, [])
    before = leecher.refused("kept_away")
    await come_and_lie(stage, leecher, stranger(4001))
    assert not await is_let_in(stage, leecher, stranger(4001))
    assert leecher.refused("kept_away") == before + 1
    assert await is_let_in(stage, leecher, stranger(4002))


async def test_from_an_address_that_only_lies_under_new_names_nobody_is_let_in(
    stage: Stage,
) -> None:
    leecher, seed = await stage.host(), await stage.seed(CONTENT)
    blob = leecher.leech(CONTENT, [])
    for number in range(BORNE + 1):
        await come_and_lie(stage, leecher, stranger(4000 + number))
    puppet = await stage.dial(leecher, greet=False)
    assert await puppet.dropped() == []
    # Whom the tracker names is dialed all the same.
    blob.add_peers([seed.peer])
    await leecher.whole(CONTENT)


async def test_who_is_kept_away_is_said_in_the_view_with_its_place(stage: Stage) -> None:
    liar = await stage.puppet(lie)
    leecher = await stage.host()
    leecher.leech(CONTENT, [liar])
    await until(lambda: leecher.keeps_away(liar))
    await come_and_lie(stage, leecher, stranger(4001))
    assert list(swarm_view(leecher.node)["kept_away"]) == [
        liar.peer.address,
        "127.0.0.1:4001 from 127.0.0.1",
    ]
