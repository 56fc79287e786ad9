# SPDX-License-Identifier: Apache-2.0
"""Peers that behave: blobs go from those who have them to those who want them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from shoal.swarm.wire import Close, Have, Open, Piece, Ping, Pong, Reject, Request
from tests.integration.swarm_hosts import (
    PATIENCE,
    PIECE,
    Content,
    Host,
    Puppet,
    Stage,
    pieces,
    until,
)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


# -- from one seed


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 300 * PIECE + 5])
@pytest.mark.parametrize("origin", [None, (0, 1)], ids=["agent", "origin"])
async def test_a_blob_of_any_size_comes_from_one_peer(
    stage: Stage, size: int, origin: tuple[int, int] | None
) -> None:
    content = Content(size)
    seed = await stage.seed(content, origin=origin)
    leecher = await stage.host()
    await leecher.fetch(content, [seed])
    assert leecher.received_from(seed) == size
    assert seed.node.links[leecher.peer.id].pace.in_flight == 0
    assert leecher.node.links[seed.peer.id].pace.in_flight == 0


async def test_pieces_larger_than_any_socket_buffer(stage: Stage) -> None:
    content = pieces(5, piece_size=8 * 1024 * 1024)
    seed = await stage.seed(content)
    leecher = await stage.host()
    await leecher.fetch(content, [seed])


async def test_a_whole_blob_can_be_given_on_at_once_and_is_not_read_again(stage: Stage) -> None:
    content = pieces(20)
    seed = await stage.seed(content)
    first, second = await stage.host(), await stage.host()
    await first.fetch(content, [seed])
    blob = first.node.blobs[content.digest]
    await second.fetch(content, [first])
    assert blob.pieces.all_verified
    assert seed.sent_in_all == content.metainfo.size


async def test_leeching_a_blob_that_is_whole_asks_nobody(stage: Stage) -> None:
    content = pieces(4)
    seed = await stage.seed(content)
    host = await stage.host()
    blob = host.leech(content, [seed], have=range(4))
    assert blob.picker is None
    await host.whole(content)
    assert seed.sent_in_all == 0


# -- in a swarm


async def test_each_piece_leaves_the_seed_about_once(stage: Stage) -> None:
    content = pieces(96, piece_size=256 * 1024)
    seed = await stage.seed(content, origin=(0, 1))
    leechers = [await stage.host() for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        for leecher in leechers:
            others = [other for other in leechers if other is not leecher]
            group.create_task(leecher.fetch(content, [seed, *others]))
    assert seed.sent_in_all < 2 * content.metainfo.size
    assert sum(leecher.sent_in_all for leecher in leechers) > 2 * content.metainfo.size


async def test_two_seeds_share_the_work(stage: Stage) -> None:
    content = pieces(64, piece_size=256 * 1024)
    seeds = [await stage.seed(content, origin=(rank, 2)) for rank in range(2)]
    leechers = [await stage.host() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        for leecher in leechers:
            others = [other for other in leechers if other is not leecher]
            group.create_task(leecher.fetch(content, [*seeds, *others]))
    assert all(seed.sent_in_all > 0 for seed in seeds)


async def test_two_halves_make_each_other_whole(stage: Stage) -> None:
    content = pieces(40)
    one, other = await stage.host(), await stage.host()
    one.leech(content, [other], have=range(20))
    other.leech(content, [one], have=range(20, 40))
    await asyncio.gather(one.whole(content), other.whole(content))
    assert one.received_from(other) == 20 * PIECE - PIECE // 3
    assert other.received_from(one) == 20 * PIECE


async def test_a_peer_hears_of_the_pieces_that_it_lacks_and_of_no_others(stage: Stage) -> None:
    content = pieces(20)
    own, lost = {0, 3, 4, 9}, 3
    seed, leecher = await stage.seed(content), await stage.host()
    blob = leecher.leech(content, [])
    puppet = await stage.dial(leecher)
    puppet.open(content, sum(1 << index for index in own))
    heard: list[int] = []

    async def give_and_listen() -> None:
        async for message, _ in puppet.listen():
            if isinstance(message, Request) and message.index != lost:
                puppet.give(content, message.index)
            elif isinstance(message, Have):
                heard.append(message.index)

    listening = asyncio.create_task(give_and_listen())
    await until(lambda: blob.pieces.verified.bit_count() == len(own) - 1)
    blob.add_peers([seed.peer])
    await leecher.whole(content)
    await until(lambda: len(heard) == content.count - len(own))
    assert set(heard) == set(range(content.count)) - own
    # It says that it has no longer one of them: then it hears of that one, too.
    puppet.say(Reject(0, lost))
    await until(lambda: heard[-1] == lost)
    listening.cancel()


async def test_what_comes_is_passed_on_before_the_blob_is_whole(stage: Stage) -> None:
    """The seed gives piece after piece to one leecher, as another one downstream gets it."""
    content = pieces(6)
    passed = asyncio.Semaphore(0)

    async def play(puppet: Puppet) -> None:
        puppet.open(content)
        for index in range(content.count):
            await passed.acquire()
            puppet.say(Have(0, index))
            request = await puppet.hear(Request)
            puppet.give(content, request.index)
        await puppet.dropped()

    seed = await stage.puppet(play)
    upstream, downstream = await stage.host(), await stage.host()
    upstream.leech(content, [seed])
    blob = downstream.leech(content, [upstream])
    for index in range(content.count):
        passed.release()
        async with asyncio.timeout(PATIENCE):
            await blob.pieces.wait(index)
    await downstream.whole(content)


# -- readers


@pytest.mark.parametrize("start", [0, 120])
async def test_what_a_reader_waits_for_is_asked_for_first_and_then_what_is_near(
    stage: Stage, start: int
) -> None:
    content = pieces(200)
    asked: list[int] = []
    first_run = asyncio.Event()

    async def play(puppet: Puppet) -> None:
        puppet.open(content, content.full)
        for number in range(200):
            request = await puppet.hear(Request)
            asked.append(request.index)
            if number == 8:
                await first_run.wait()
            puppet.give(content, request.index)
        await puppet.dropped()

    seed = await stage.puppet(play)
    leecher = await stage.host()
    blob = leecher.leech(content, [])
    blob.pieces.readers.set("reader", start * PIECE, content.metainfo.size)
    blob.add_peers([seed.peer])
    # Little beyond the first run is sent until the reader has got that.
    async with asyncio.timeout(PATIENCE):
        runs = [run async for run in blob.pieces.readable(start * PIECE, (start + 4) * PIECE)]
    assert runs[-1][1] >= (start + 4) * PIECE
    assert asked[:4] == list(range(start, start + 4))
    assert set(asked[:9]) <= set(range(start, start + 64))
    first_run.set()
    await leecher.whole(content)
    assert sorted(asked) == list(range(200))


async def test_a_reader_gets_runs_in_order_and_any_number_may_read(stage: Stage) -> None:
    content = pieces(64)
    seed = await stage.seed(content)
    leecher = await stage.host()
    blob = leecher.leech(content, [])

    async def read(start: int, stop: int) -> bytes:
        reader = object()
        blob.pieces.readers.set(reader, start, stop)
        parts = []
        with leecher.path(content).open("rb", buffering=0) as file:
            async for begin, end in blob.pieces.readable(start, stop):
                file.seek(begin)
                parts.append(file.read(end - begin))
                blob.pieces.readers.set(reader, end, stop)
        blob.pieces.readers.remove(reader)
        return b"".join(parts)

    ranges = [(0, content.metainfo.size), (5, 6), (PIECE - 1, PIECE + 1), (99_999, 200_000)]
    reads = asyncio.gather(*(read(*span) for span in ranges))
    blob.add_peers([seed.peer])
    async with asyncio.timeout(PATIENCE):
        assert await reads == [content.data[start:stop] for start, stop in ranges]


async def test_readers_of_a_download_that_fails_get_the_failure(stage: Stage) -> None:
    content = pieces(3)
    leecher = await stage.host()
    blob = leecher.leech(content, [], have=[0])
    waiting = asyncio.gather(
        blob.pieces.wait(1), blob.pieces.wait(2), blob.pieces.wait(2), return_exceptions=True
    )
    await asyncio.sleep(0)
    blob.pieces.fail(OSError("no space left"))
    assert [str(error) for error in await waiting] == ["no space left"] * 3
    with pytest.raises(OSError, match="no space left"):
        await blob.pieces.wait(1)
    await blob.pieces.wait(0)


# -- interruptions


async def test_only_what_is_missing_is_fetched(stage: Stage) -> None:
    content = pieces(50)
    seed = await stage.seed(content)
    leecher = await stage.host()
    have = [index for index in range(50) if index % 5]
    leecher.leech(content, [seed], have=have)
    await leecher.whole(content)
    assert leecher.received_from(seed) == sum(
        content.metainfo.length(index) for index in range(50) if index % 5 == 0
    )


async def test_a_download_that_was_stopped_can_be_taken_up_over_the_same_connections(
    stage: Stage,
) -> None:
    content = pieces(30)

    async def play(puppet: Puppet) -> None:
        puppet.open(content, 0b11)
        for _ in range(2):
            puppet.give(content, (await puppet.hear(Request)).index)
        puppet.say(*(Have(0, index) for index in range(2, 30)))
        while True:
            puppet.give(content, (await puppet.hear(Request)).index)

    seed = await stage.puppet(play)
    leecher = await stage.host()
    blob = leecher.leech(content, [seed])
    async with asyncio.timeout(PATIENCE):
        await blob.pieces.wait(0)
        await blob.pieces.wait(1)
    blob.stop_leeching()
    leecher.node.leech(blob.pieces, [seed.peer])
    await leecher.whole(content)
    assert seed.connections == 1


async def test_a_peer_that_only_gave_may_begin_to_fetch(stage: Stage) -> None:
    """Its neighbours are connected already and have told what they have."""
    content = pieces(10)
    seed, host = await stage.seed(content), await stage.host()
    blob = host.node.add(host.file(content, have=[0]))
    seed.leech(content, [host], have=range(10))
    seed_blob = seed.node.blobs[content.digest]
    seed_blob.candidates[host.peer.id] = host.peer
    seed.node.connect(seed_blob)
    await until(lambda: blob.links)
    host.node.leech(blob.pieces, [])
    await host.whole(content)


async def test_leeching_twice_is_leeching_once(stage: Stage) -> None:
    content = pieces(30)
    seed = await stage.seed(content)
    leecher = await stage.host()
    blob = leecher.leech(content, [seed])
    picker = blob.picker
    assert leecher.node.leech(blob.pieces, [seed.peer]) is blob
    assert blob.picker is picker
    await leecher.whole(content)


async def test_the_next_candidate_takes_the_place_of_a_peer_that_vanishes(stage: Stage) -> None:
    content = pieces(40)

    async def play(puppet: Puppet) -> None:
        puppet.open(content, content.full)
        await puppet.hear(Request)

    vanishing = await stage.puppet(play)
    seed = await stage.seed(content)
    leecher = await stage.host(max_dialed=1)
    leecher.leech(content, [vanishing, seed])
    await leecher.whole(content)
    assert vanishing.connections == 1


async def test_the_next_candidate_takes_the_place_of_a_peer_that_is_not_there(
    stage: Stage,
) -> None:
    content = pieces(4)
    gone, seed = await stage.host(), await stage.seed(content)
    absent = gone.peer
    await gone.node.stop()
    leecher = await stage.host(max_dialed=1)
    blob = leecher.leech(content, [])
    blob.add_peers([absent, seed.peer])
    await leecher.whole(content)


# -- connections


async def test_dialing_each_other_at_once_ends_in_one_connection(stage: Stage) -> None:
    for number in range(15):
        content = pieces(12, seed=number)
        one, other = await stage.host(), await stage.host()
        one.leech(content, [other], have=range(6))
        other.leech(content, [one], have=range(6, 12))
        await asyncio.gather(one.whole(content), other.whole(content))
        ours, theirs = one.node.links[other.peer.id], other.node.links[one.peer.id]
        assert ours.dialed != theirs.dialed
        both = one.node.neighbours.strangers, other.node.neighbours.strangers
        await until(lambda: not any(both))  # noqa: B023
        assert not ours.closed
        assert not theirs.closed


async def test_a_peer_that_gets_the_blob_later_gives_it_then(stage: Stage) -> None:
    content = pieces(10)
    late, leecher = await stage.host(), await stage.host()
    leecher.leech(content, [late])
    await until(lambda: late.node._wishes.get(content.digest))
    assert late.shelf.asked == [content.digest]
    late.put(content)
    blob = late.node.add(late.shelf.blobs[content.digest]())
    await leecher.whole(content)
    assert list(blob.links) == [leecher.peer.id]


async def test_a_peer_that_begins_to_fetch_the_blob_later_gives_what_it_gets(
    stage: Stage,
) -> None:
    content = pieces(10)
    seed = await stage.seed(content)
    late, leecher = await stage.host(), await stage.host()
    leecher.leech(content, [late])
    await until(lambda: late.node._wishes.get(content.digest))
    late.leech(content, [seed])
    await asyncio.gather(late.whole(content), leecher.whole(content))


async def test_pieces_got_while_the_blob_is_being_looked_up_are_known(stage: Stage) -> None:
    content = pieces(10)
    host = await stage.host()
    puppet = await stage.dial(host)
    blob = host.leech(content, [])
    del host.node.blobs[content.digest]
    puppet.open(content)
    puppet.say(Have(0, 3), Ping())
    host.shelf.blobs[content.digest] = lambda: blob.pieces
    await puppet.hear(Pong)
    host.node.blobs[content.digest] = blob
    assert (await puppet.hear(Request)).index == 3
    puppet.give(content, 3)
    async with asyncio.timeout(PATIENCE):
        await blob.pieces.wait(3)


async def test_two_hundred_small_blobs_share_one_connection(stage: Stage) -> None:
    contents = [Content(PIECE // 2 + number, seed=number) for number in range(200)]
    seed = await stage.seed(*contents[:100])
    host = await stage.seed(*contents[100:])
    async with asyncio.TaskGroup() as group:
        for content in contents[:100]:
            group.create_task(host.fetch(content, [seed]))
        for content in contents[100:]:
            group.create_task(seed.fetch(content, [host]))
    assert len(host.node.links) == len(seed.node.links) == 1


async def test_a_large_blob_does_not_starve_a_small_one_on_the_same_connection(
    stage: Stage,
) -> None:
    large, small = pieces(400), pieces(2, seed=1)

    async def play(puppet: Puppet) -> None:
        """Gives pieces one at a time, in the order in which they were asked for."""
        puppet.open(large, large.full, channel=0)
        puppet.open(small, small.full, channel=1)
        while True:
            request = await puppet.hear(Request)
            content = [large, small][request.channel]
            puppet.give(content, request.index, channel=request.channel)

    seed = await stage.puppet(play)
    leecher = await stage.host(pipeline=64 * PIECE)
    big = leecher.leech(large, [seed])
    await leecher.fetch(small, [seed])
    assert not big.pieces.all_verified
    await leecher.whole(large)


async def test_a_blob_that_is_taken_away_leaves_the_others_on_the_connection_alone(
    stage: Stage,
) -> None:
    removed, kept = pieces(40, piece_size=1 << 20), pieces(3, seed=1)
    seed = await stage.seed(removed, kept)
    puppet = await stage.dial(seed)
    puppet.open(removed, channel=0)
    puppet.open(kept, channel=1)
    assert {(await puppet.hear(Open)).digest for _ in range(2)} == {removed.digest, kept.digest}
    # More than the sockets hold, so that most of it still waits when the blob goes.
    puppet.say(*(Request(0, index) for index in range(40)))
    await puppet.hear_piece()
    seed.node.remove(removed.digest)
    puppet.say(Request(0, 39), Request(1, 2), Ping())
    seen: list[type] = []
    async with asyncio.timeout(PATIENCE):
        async for message, _ in puppet.listen():
            seen.append(type(message))
            if isinstance(message, Piece) and message.length == kept.metainfo.length(2):
                break
    assert Pong in seen
    assert Piece not in seen[seen.index(Close) : -1]
    assert seen.count(Piece) < 41


async def test_a_download_that_is_given_up_leaves_the_others_on_the_connection_alone(
    stage: Stage,
) -> None:
    dropped, kept = pieces(100), pieces(100, seed=1)
    seed = await stage.seed(dropped, kept)
    leecher = await stage.host()
    blob = leecher.leech(dropped, [seed])
    leecher.leech(kept, [seed])
    async with asyncio.timeout(PATIENCE):
        await blob.pieces.wait(0)
    leecher.node.remove(dropped.digest)
    await leecher.whole(kept)
    assert list(seed.node.links) == [leecher.peer.id]
    # And it can be taken up anew.
    await leecher.fetch(dropped, [seed])


# -- bounds


async def test_memory_for_pieces_stays_within_its_bound(stage: Stage) -> None:
    content = pieces(200, piece_size=16 * 1024)
    limit = 64 * 1024
    seeds = [await stage.seed(content) for _ in range(4)]
    leecher = await stage.host(buffers=limit)
    used: list[int] = []
    take = leecher.node._buffers.take

    def watched(length: int) -> memoryview | None:
        memory = take(length)
        used.append(leecher.node._buffers._used)
        return memory

    leecher.node._buffers.take = watched  # type: ignore[method-assign]
    await leecher.fetch(content, seeds)
    assert 0 < max(used) <= limit
    await until(lambda: leecher.node._buffers._used == 0)


async def test_waiting_for_own_memory_is_not_held_against_the_peer(stage: Stage) -> None:
    content = pieces(30)
    seed = await stage.seed(content)
    leecher = await stage.host(buffers=PIECE, request_timeout=0.2)
    release = hold_disk(leecher)
    blob = leecher.leech(content, [seed])
    await until(lambda: leecher.node.links)
    link = leecher.node.links[seed.peer.id]
    await until(lambda: link.connection.paused)
    began = leecher.node.now()
    await until(lambda: leecher.node.now() > began + 0.6)
    assert link.pace._strikes == 0
    release()
    await leecher.whole(content)
    assert not link.closed
    assert blob.pieces.all_verified


def hold_disk(host: Host) -> Callable[[], None]:
    """Nothing is checked or written on this host until the function returned is called."""
    held = threading.Event()
    for _ in range(2):
        host.node.executor.submit(held.wait, PATIENCE)
    return held.set


# -- the end


async def test_stopping_in_the_middle_leaves_nothing_behind(stage: Stage) -> None:
    content = pieces(2000)
    seed, leecher = await stage.seed(content), await stage.host()
    blob = leecher.leech(content, [seed])
    async with asyncio.timeout(PATIENCE):
        await blob.pieces.wait(content.count // 2)
    await leecher.node.stop()
    assert not leecher.node.listening
    assert leecher.node._tasks == set()
    await until(lambda: not seed.node.links)
