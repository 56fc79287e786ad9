# SPDX-License-Identifier: Apache-2.0
"""Hosts of two zones, told of each other as trackers do: what crosses from one into the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from shoal.swarm.peers import PeerInfo
from shoal.swarm.wire import Request
from shoal.tracker.swarms import Swarms
from tests.integration.swarm_hosts import PIECE, Host, Puppet, Stage, pieces, until


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


def move(host: Host, zone: str) -> Host:
    peer = host.peer
    host.node.peer = PeerInfo(peer.id, peer.host, peer.port, zone, peer.origin)
    return host


async def test_each_piece_crosses_into_a_zone_about_once(stage: Stage) -> None:
    content = pieces(120)
    origin = move(await stage.seed(content, origin=(0, 1)), "near")
    zones = {
        zone: [move(await stage.host(), zone) for _ in range(hosts)]
        for zone, hosts in (("near", 4), ("far", 20))
    }
    hosts = [host for members in zones.values() for host in members]
    tracker = Swarms(peer_ttl=60.0, handout=20, rng=random.Random(2))

    def announce(host: Host) -> None:
        told = tracker.announce(
            host.peer, str(content.digest), complete=False, origins=[origin.peer], now=0.0
        )
        blob = host.node.blobs[content.digest]
        blob.keep_to_zone(told.share)
        blob.add_peers(told.peers)

    for host in hosts:
        tracker.announce(host.peer, str(content.digest), complete=False, now=0.0)
        host.leech(content, [])
    for host in hosts:
        announce(host)
    await asyncio.gather(*(host.whole(content) for host in hosts))
    near = [origin, *zones["near"]]
    crossed = sum(host.received_from(other) for host in zones["far"] for other in near)
    assert content.metainfo.size <= crossed <= 2 * content.metainfo.size


async def test_who_was_starved_keeps_to_its_zone_again(stage: Stage) -> None:
    content = pieces(300)
    asked: list[int] = []
    give = asyncio.Event()

    async def play(puppet: Puppet) -> None:
        puppet.open(content, content.full)
        async for message, _ in puppet.listen():
            if isinstance(message, Request):
                asked.append(message.index)
                await give.wait()
                puppet.give(content, message.index)

    outside = await stage.puppet(play)
    inside = move(await stage.seed(content), "here")
    host = move(await stage.host(), "here")
    blob = host.leech(content, [])
    blob.keep_to_zone(None)
    blob.add_peers([outside.peer])
    await until(lambda: blob.links)
    assert not asked
    blob.keep_to_zone((0, 1))
    await until(lambda: asked)
    blob.keep_to_zone(None)
    give.set()
    blob.add_peers([inside.peer])
    await host.whole(content)
    # Some were asked for already, and late ones may be; the rest came from its own zone.
    assert len(asked) < 60
    assert host.received_from(inside) > 200 * PIECE
