# SPDX-License-Identifier: Apache-2.0
"""Peers that give next to nothing, ask for ever or pretend to be others; and blobs of any size."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.swarm import bits as bitset
from shoal.swarm.drops import Drop
from shoal.swarm.floods import REPEATS
from shoal.swarm.metainfo import MAX_PIECE, Metainfo, PieceHasher, piece_size_for
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.pieces import PieceFile, SharedFile
from shoal.swarm.wire import HEADER, VERSION, Have, Hello, Open, Piece, Ping, Pong, Request
from tests.integration.swarm_hosts import PATIENCE, Puppet, Stage, pieces, until

CONTENT = pieces(30)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


# -- give next to nothing


async def test_two_trickling_peers_do_not_hold_up_a_piece_for_long(stage: Stage) -> None:
    """Each has begun to send the only piece, and would go on for an hour."""
    content = pieces(1, piece_size=1 << 20)
    done = asyncio.Event()

    async def play(puppet: Puppet) -> None:
        puppet.open(content, content.full)
        await puppet.hear(Request)
        puppet.say(Piece(0, 0, content.metainfo.length(0)))
        while not done.is_set():
            puppet.say_raw(b"x")
            await puppet.writer.drain()
            await asyncio.wait([asyncio.ensure_future(done.wait())], timeout=0.02)

    trickling = [await stage.puppet(play) for _ in range(2)]
    leecher = await stage.host()
    blob = leecher.leech(content, trickling)
    await until(lambda: len(leecher.node.links) == 2)
    await until(lambda: all(it.received.total for it in leecher.node.links.values()))
    blob.add_peers([(await stage.seed(content)).peer])
    began = time.monotonic()
    await leecher.whole(content)
    assert time.monotonic() - began < 4.0
    done.set()


async def test_a_peer_that_trickles_on_is_dropped_and_its_memory_is_free(stage: Stage) -> None:
    content = pieces(4, piece_size=1 << 20)
    done = asyncio.Event()

    async def play(puppet: Puppet) -> None:
        puppet.open(content, content.full)
        index = (await puppet.hear(Request)).index
        puppet.say(Piece(0, index, content.metainfo.length(index)))
        while not done.is_set():
            puppet.say_raw(b"x")
            await puppet.writer.drain()
            await asyncio.wait([asyncio.ensure_future(done.wait())], timeout=0.02)

    trickling = await stage.puppet(play)
    leecher = await stage.host(request_timeout=1.5)
    before = leecher.dropped(Drop.TRICKLE)
    leecher.leech(content, [trickling])
    await until(lambda: leecher.node.links)
    await until(lambda: leecher.keeps_away(trickling))
    assert leecher.node.links == {}
    assert leecher.node._buffers._used == 0
    assert leecher.dropped(Drop.TRICKLE) == before + 1
    done.set()


async def test_a_peer_at_a_kilobyte_per_second_is_not_waited_for(stage: Stage) -> None:
    content = pieces(8, piece_size=64 * 1024)
    slow = await stage.seed(content, egress=1000)
    seed = await stage.seed(content)
    leecher = await stage.host()
    began = time.monotonic()
    await leecher.fetch(content, [slow, seed])
    assert time.monotonic() - began < 8.0


# -- ask for ever


async def test_a_peer_that_asks_for_the_same_piece_for_ever_is_dropped(stage: Stage) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)
    puppet.open(CONTENT)
    await puppet.hear(Open)
    before = host.dropped(Drop.FLOOD)
    for _ in range(CONTENT.count + REPEATS + 1):
        puppet.say(Request(0, 7))
        await puppet.hear_piece()
    puppet.say(Request(0, 7))
    await puppet.dropped()
    assert host.dropped(Drop.FLOOD) == before + 1


async def test_a_peer_that_asks_twice_before_it_got_gets_it_once(stage: Stage) -> None:
    content = pieces(10, piece_size=1 << 20)
    host = await stage.seed(content)
    puppet = await stage.dial(host)
    puppet.open(content)
    await puppet.hear(Open)
    puppet.say(*(Request(0, index) for index in range(10)), *(Request(0, 9) for _ in range(50)))
    got = [(await puppet.hear_piece())[0].index for _ in range(10)]
    assert sorted(got) == list(range(10))
    puppet.say(Ping())
    seen = [type(message) async for message, _ in until_pong(puppet)]
    assert Piece not in seen


async def until_pong(puppet: Puppet) -> AsyncGenerator[tuple[object, bytes]]:
    async with asyncio.timeout(PATIENCE):
        async for message, payload in puppet.listen():
            yield message, payload
            if isinstance(message, Pong):
                return


@pytest.mark.parametrize("index", [-1, 2**31])
@pytest.mark.parametrize("kind", [4, 5, 6, 7, 8])
async def test_an_index_that_no_blob_has_ends_the_connection(
    stage: Stage, kind: int, index: int
) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)
    puppet.open(CONTENT)
    await puppet.hear(Open)
    before = host.dropped(Drop.PROTOCOL)
    length = CONTENT.metainfo.length(0) if kind == 8 else 0
    puppet.say_raw(HEADER.pack(kind, 0, 0, 0, index % 2**32, length))
    await puppet.dropped()
    assert host.dropped(Drop.PROTOCOL) == before + 1


async def test_a_peer_that_opens_more_than_memory_is_meant_for_is_dropped(stage: Stage) -> None:
    host = await stage.host()
    host.shelf.hold = asyncio.Event()
    puppet = await stage.dial(host)
    before = host.dropped(Drop.PROTOCOL)
    bits = bytes(1 << 17)
    for channel in range(40):
        puppet.say(Open(channel, Digest.of(str(channel).encode()), 1 << 20, bits))
    await puppet.dropped()
    assert host.dropped(Drop.PROTOCOL) == before + 1
    host.shelf.hold.set()


async def test_pieces_shown_before_the_blob_is_looked_up_must_be_its_pieces(stage: Stage) -> None:
    host = await stage.seed(CONTENT)
    host.shelf.hold = asyncio.Event()
    puppet = await stage.dial(host)
    before = host.dropped(Drop.PROTOCOL)
    puppet.open(CONTENT)
    puppet.say(Have(0, CONTENT.count))
    await puppet.dropped()
    assert host.dropped(Drop.PROTOCOL) == before + 1
    host.shelf.hold.set()


# -- pretend to be others


async def test_a_stranger_with_the_id_of_a_peer_does_not_take_its_place(stage: Stage) -> None:
    host = await stage.seed(CONTENT)
    honest = await stage.dial(host)
    thief = PeerInfo(honest.peer.id, "10.9.8.7", 5012)
    puppet = await stage.dial(host, peer=thief, greet=False)
    puppet.say(Hello(VERSION, thief))
    await puppet.dropped()
    honest.open(CONTENT)
    await honest.hear(Open)
    link = host.node.links[honest.peer.id]
    assert link.peer is not None
    assert link.peer.host == honest.peer.host


async def test_a_peer_that_was_started_anew_is_found_where_it_was(stage: Stage) -> None:
    """The tracker still hands out the id of the process before; one connection is enough."""
    seed = await stage.seed(CONTENT)
    former = PeerInfo(new_peer_id(), seed.peer.host, seed.peer.port)
    leecher = await stage.host()
    blob = leecher.node.leech(leecher.file(CONTENT), [former])
    blob.add_peers([former])
    await leecher.whole(CONTENT)
    other = pieces(5, seed=3)
    seed.put(other)
    link = leecher.node.links[seed.peer.id]
    leecher.node.leech(leecher.file(other), [former])
    await leecher.whole(other)
    assert leecher.node.links == {seed.peer.id: link}


# -- any size


async def test_a_blob_of_120_gb_is_opened_and_its_last_piece_comes(
    stage: Stage, tmp_path: Path
) -> None:
    """Sparse on both sides: all pieces are zeros, but for the last one."""
    size = 120_000_000_001
    last = os.urandom(size % MAX_PIECE)
    count = -(-size // MAX_PIECE)
    assert piece_size_for(size) == MAX_PIECE
    zeros, end = PieceHasher(MAX_PIECE), PieceHasher(MAX_PIECE)
    zeros.update(bytes(MAX_PIECE))
    end.update(last)
    digest = Digest.of(b"too long to hash here")
    metainfo = Metainfo(str(digest), size, MAX_PIECE, zeros.finish() * (count - 1) + end.finish())
    assert Metainfo.decode(metainfo.encode()) == metainfo

    seed, leecher = await stage.host(), await stage.host()
    full = bitset.full(count)
    file = SharedFile(tmp_path / "seed", create=size)
    os.pwrite(file.fd, last, size - len(last))
    seed.node.add(PieceFile(metainfo, file, seed.node.executor, present=full, verified=0))
    # Its own file lacks three pieces of all.
    wanted = (0, count // 2, count - 1)
    have = full & ~sum(1 << index for index in wanted)
    mine = SharedFile(tmp_path / "leecher", create=size)
    blob = leecher.node.leech(
        PieceFile(metainfo, mine, leecher.node.executor, present=0, verified=have), [seed.peer]
    )
    async with asyncio.timeout(PATIENCE):
        for index in wanted:
            await blob.pieces.wait(index)
    assert blob.pieces.all_verified
    assert os.pread(mine.fd, len(last), size - len(last)) == last
    assert leecher.received_from(seed) == 2 * MAX_PIECE + len(last)
