# SPDX-License-Identifier: Apache-2.0
"""Many blobs share few connections: a host dials fewer than it accepts, over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from shoal.swarm import link as link_module
from shoal.swarm import slots
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.drops import Drop
from shoal.swarm.peers import PeerInfo
from shoal.swarm.wire import Open, Ping, Pong, Unknown
from tests.integration.swarm_hosts import PATIENCE, Host, Puppet, Stage, pieces, until

BLOBS = [pieces(5, seed=seed) for seed in range(8)]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


def dialed(host: Host) -> int:
    """Connections that a host has dialed, or is dialing."""
    neighbours = host.node.neighbours
    return len(neighbours._dialed.keys() | neighbours.dialing)


async def test_a_blob_comes_over_a_connection_that_another_one_has(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "IDLE", PATIENCE)
    first, second = BLOBS[:2]
    shared, other = await stage.seed(first, second), await stage.seed(second)
    leecher = await stage.host(max_dialed=1, max_accepted=2)
    await leecher.fetch(first, [shared])
    # The tracker names another peer, which may not be dialed: one is the most here.
    await leecher.fetch(second, [other])
    assert leecher.received_from(shared) == first.metainfo.size + second.metainfo.size
    assert list(leecher.node.links) == [shared.peer.id]


async def test_a_blob_is_not_fetched_from_another_zone_because_another_blob_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker says who brings which blob into a zone."""
    monkeypatch.setattr(slots, "IDLE", PATIENCE)
    first, second = BLOBS[:2]
    far, other = await stage.seed(first, second), await stage.seed(second)
    peer = far.node.peer
    far.node.peer = PeerInfo(peer.id, peer.host, peer.port, zone="elsewhere")
    leecher = await stage.host(max_dialed=1, max_accepted=2)
    await leecher.fetch(first, [far])
    blob = leecher.leech(second, [other])
    link = leecher.node.links[far.peer.id]
    assert blob not in link.blobs
    link.close("it is gone")
    await leecher.whole(second)
    assert leecher.received_from(other) == second.metainfo.size


async def test_blobs_that_no_two_peers_share_come_one_after_the_other(stage: Stage) -> None:
    """A connection that serves nothing any more makes room for another one."""
    seeds = [await stage.seed(blob) for blob in BLOBS]
    leecher = await stage.host(max_dialed=2, max_accepted=4)
    for blob, seed in zip(BLOBS, seeds, strict=True):
        leecher.leech(blob, [seed])
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, dialed(leecher))
        for blob, seed in zip(BLOBS, seeds, strict=True):
            # As the tracker does, again and again, for a download that has no peers.
            swarm = leecher.node.blobs[blob.digest]
            if swarm.picker is not None:
                swarm.add_peers([seed.peer])
        return all(leecher.node.blobs[blob.digest].picker is None for blob in BLOBS)

    await until(done)
    for blob in BLOBS:
        await leecher.whole(blob)
    assert 2 <= most <= 3


async def test_a_peer_that_does_not_have_a_blob_is_not_asked_for_it_again(stage: Stage) -> None:
    first, second, absent = BLOBS[:3]
    opened: list[object] = []

    async def play(puppet: Puppet) -> None:
        puppet.open(first)
        async with asyncio.timeout(PATIENCE):
            async for message, _ in puppet.listen():
                if isinstance(message, Open):
                    opened.append(message.digest)
                    if message.digest != first.digest:
                        puppet.say(Unknown(message.channel))
                elif isinstance(message, Ping):
                    puppet.say(Pong())

    other = await stage.puppet(play)
    leecher = await stage.host(max_dialed=1, max_accepted=2)
    leecher.leech(first, [other])
    await until(lambda: leecher.node.links)
    blob = leecher.leech(second, [other])
    nobody = await stage.seed(absent)
    shares = leecher.leech(absent, [nobody])
    await until(lambda: len(opened) == 3)
    link = leecher.node.links[other.peer.id]
    await until(lambda: len(link._declined) == 2)
    for _ in range(50):
        blob.add_peers([other.peer])
        shares.add_peers([nobody.peer])
        await asyncio.sleep(0)
    link.connection.send(Ping())
    await until(lambda: not link.connection._control)
    assert sorted(map(str, opened)) == sorted(str(it.digest) for it in (first, second, absent))


async def test_a_connection_that_has_had_all_its_blobs_is_counted_and_begins_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MAX_CHANNELS", 3)
    seed, leecher = await stage.seed(*BLOBS), await stage.host()
    before = leecher.dropped(Drop.CHANNELS)
    for blob in BLOBS:
        swarm = leecher.leech(blob, [seed])

        def done(swarm: BlobSwarm = swarm) -> bool:
            swarm.add_peers([seed.peer])
            return swarm.picker is None

        await until(done)
        await leecher.whole(blob)
    assert leecher.dropped(Drop.CHANNELS) >= before + 2
    assert not leecher.keeps_away(seed)


async def test_a_peer_that_gets_a_blob_it_did_not_have_takes_part_in_it(stage: Stage) -> None:
    content = BLOBS[0]
    late, seed = await stage.host(), await stage.seed(content)
    leecher = await stage.host()
    leecher.leech(content, [late])
    await until(lambda: late.node.links)
    link = next(iter(leecher.node.links.values()))
    await until(lambda: link._declined)
    await late.fetch(content, [seed])
    await leecher.whole(content)
    assert leecher.received_from(late) == content.metainfo.size
