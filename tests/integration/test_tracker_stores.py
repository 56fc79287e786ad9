# SPDX-License-Identifier: Apache-2.0
"""Both stores of the tracker keep one contract; what only Redis can do, and its loss."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from shoal.swarm.peers import PeerInfo
from shoal.tracker import redis_store
from shoal.tracker.redis_store import RedisStore
from shoal.tracker.store import MemoryStore, Presence, SwarmStore
from shoal.tracker.swarms import Swarms
from tests.redis_server import RedisServer

BLOB = "sha256:" + "a" * 64
OTHER_BLOB = "sha256:" + "b" * 64
TTL = 60.0


def peer(number: int, *, host: str | None = None, zone: str = "") -> PeerInfo:
    return PeerInfo(f"{number:032x}", host or f"10.0.0.{number}", 5012, zone)


class Clock:
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer.start(tmp_path_factory.mktemp("redis")) as server:
        yield server


T = TypeVar("T")


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.client("redis"))])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[SwarmStore]:
    swarms = Swarms(peer_ttl=TTL, handout=10)
    made: SwarmStore = MemoryStore(swarms, clock=clock)
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        made = RedisStore(server.url, swarms, peer_ttl=TTL, prefix=f"{uuid4()}:", clock=clock)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def join(
    store: SwarmStore, who: PeerInfo, blob: str = BLOB, *, complete: bool = False
) -> list[PeerInfo]:
    [told] = await store.announce(who, [Presence(blob, complete)])
    return told.peers


# -- what both do


async def test_peers_of_a_blob_learn_of_each_other(store: SwarmStore) -> None:
    assert await join(store, peer(1)) == []
    assert await join(store, peer(2)) == [peer(1)]
    assert await join(store, peer(3), OTHER_BLOB) == []
    found = await store.peers(BLOB)
    assert (found.seeds, set(found.leechers)) == ([], {peer(1), peer(2)})


async def test_one_announce_speaks_of_many_blobs(store: SwarmStore) -> None:
    await join(store, peer(1))
    seed, leech = await store.announce(
        peer(2), [Presence(OTHER_BLOB, complete=True), Presence(BLOB, complete=False)]
    )
    assert (seed.peers, leech.peers) == ([], [peer(1)])
    assert (await store.peers(OTHER_BLOB)).seeds == [peer(2)]


async def test_who_becomes_complete_is_a_seed(store: SwarmStore) -> None:
    await join(store, peer(1))
    assert await join(store, peer(1), complete=True) == []
    found = await store.peers(BLOB)
    assert (found.seeds, found.leechers) == ([peer(1)], [])


async def test_origins_are_handed_out_beside_agents(store: SwarmStore) -> None:
    origin = PeerInfo("f" * 32, "origin", 5003, origin=True)
    [told] = await store.announce(peer(1), [Presence(BLOB, complete=False, origins=[origin])])
    assert told.peers == [origin]


async def test_zones_are_kept(store: SwarmStore) -> None:
    await join(store, peer(1, zone="a"))
    [told] = await store.announce(peer(2, zone="b"), [Presence(BLOB, complete=False)])
    assert told.peers == [peer(1, zone="a")]
    assert told.share is not None


async def test_a_peer_that_left_is_not_handed_out(store: SwarmStore) -> None:
    for blob in (BLOB, OTHER_BLOB):
        await join(store, peer(1), blob)
    await store.leave(peer(1).id, [BLOB])
    assert await join(store, peer(2)) == []
    assert await join(store, peer(2), OTHER_BLOB) == [peer(1)]
    await store.leave(peer(1).id, None)
    assert await join(store, peer(2), OTHER_BLOB) == []
    await join(store, peer(1))
    assert await join(store, peer(2)) == [peer(1)]


async def test_leaving_what_was_never_joined_changes_nothing(store: SwarmStore) -> None:
    await store.leave(peer(1).id, [BLOB])
    await store.leave(peer(1).id, None)
    await join(store, peer(2))
    assert (await store.peers(BLOB)).leechers == [peer(2)]


async def test_a_process_that_restarted_replaces_the_one_at_its_address(store: SwarmStore) -> None:
    await join(store, peer(1), complete=True)
    again = peer(9, host=peer(1).host)
    await join(store, again)
    assert await join(store, peer(2)) == [again]


async def test_who_is_not_heard_of_is_forgotten(store: SwarmStore, clock: Clock) -> None:
    await join(store, peer(1))
    clock.ahead = TTL / 2
    await join(store, peer(2))
    clock.ahead = TTL + 1
    assert await join(store, peer(3)) == [peer(2)]


async def test_whether_others_have_the_blob_does_not_count_oneself(store: SwarmStore) -> None:
    assert not await store.has_others(BLOB, peer(1).id)
    await join(store, peer(1))
    assert not await store.has_others(BLOB, peer(1).id)
    assert await store.has_others(BLOB, peer(2).id)


async def test_a_store_that_works_lacks_nothing(store: SwarmStore) -> None:
    assert store.missing() == []


# -- what only the one in Redis does


@asynccontextmanager
async def trackers(
    server: RedisServer, count: int = 1, *, prefix: str = "", ttl: float = TTL
) -> AsyncIterator[Sequence[RedisStore]]:
    """Stores of several trackers over one Redis."""
    prefix = prefix or f"{uuid4()}:"
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            store = RedisStore(
                server.url, Swarms(peer_ttl=ttl, handout=10), peer_ttl=ttl, prefix=prefix
            )
            await store.start()
            stack.push_async_callback(store.stop)
            made.append(store)
        yield made


async def until(ask: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> None:
    """Ask again until the answer is as wanted."""
    async with asyncio.timeout(20.0):
        while True:
            if wanted(await ask()):
                return
            await asyncio.sleep(0.05)


@pytest.mark.client("redis")
async def test_a_tracker_that_starts_anew_knows_who_is_there(redis: RedisServer) -> None:
    prefix = f"{uuid4()}:"
    async with trackers(redis, prefix=prefix) as [first]:
        await join(first, peer(1), complete=True)
        await join(first, peer(2, zone="a"))
        await join(first, peer(3))
        await first.leave(peer(3).id, None)
    async with trackers(redis, prefix=prefix) as [second]:
        assert await second.has_others(BLOB, peer(9).id)
        found = await second.peers(BLOB)
        assert (found.seeds, found.leechers) == ([peer(1)], [peer(2, zone="a")])


@pytest.mark.client("redis")
async def test_trackers_learn_from_each_other_within_seconds(redis: RedisServer) -> None:
    async with trackers(redis, 2) as [one, other]:
        await join(one, peer(1))
        await join(other, peer(2))
        await until(lambda: join(one, peer(1)), lambda told: told == [peer(2)])
        await until(lambda: join(other, peer(2)), lambda told: told == [peer(1)])
        await one.leave(peer(1).id, None)
        await until(lambda: join(other, peer(2)), lambda told: told == [])
        await join(one, peer(1))
        await until(lambda: join(other, peer(2)), lambda told: told == [peer(1)])


@pytest.mark.client("redis")
async def test_a_peer_that_moved_to_another_tracker_is_what_it_said_last(
    redis: RedisServer,
) -> None:
    async with trackers(redis, 2) as [one, other]:
        await join(one, peer(1))
        await until(lambda: other.has_others(BLOB, ""), bool)
        await join(other, peer(1), complete=True)
        await until(lambda: one.peers(BLOB), lambda found: found.seeds == [peer(1)])
        assert (await one.peers(BLOB)).leechers == []


@pytest.mark.client("redis")
async def test_a_record_that_no_tracker_wrote_is_passed_over(redis: RedisServer) -> None:
    prefix = f"{uuid4()}:"
    async with trackers(redis, prefix=prefix) as [first]:
        await join(first, peer(1), complete=True)
    client: Redis = Redis.from_url(redis.url)
    pipeline = client.pipeline()
    pipeline.execute_command("HSET", f"{prefix}{BLOB}:peers", peer(2).id, "01234567 not JSON")
    pipeline.execute_command("ZADD", f"{prefix}{BLOB}:heard", str(time.time()), peer(2).id)
    await pipeline.execute()
    await client.aclose()
    async with trackers(redis, prefix=prefix) as [second]:
        assert (await second.peers(BLOB)).seeds == [peer(1)]
        assert second.missing() == []


@pytest.mark.client("redis")
async def test_many_joins_at_once_read_a_blob_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trackers(redis) as [store]:
        round_trips: list[int] = []
        execute = store._execute

        async def counted(commands: Sequence[list[str | bytes]]) -> list[object]:
            round_trips.append(len(commands))
            return await execute(commands)

        monkeypatch.setattr(store, "_execute", counted)
        monkeypatch.setattr(redis_store, "FRESH", 1000.0)
        await asyncio.gather(*(join(store, peer(number)) for number in range(1, 200)))
        assert len(round_trips) == 1
        blobs = [Presence(f"sha256:{number:064x}", complete=False) for number in range(500)]
        await store.announce(peer(1), blobs)
        await store.stop()
        # One to read, those in the background to write.
        assert len(round_trips) <= 4


@pytest.mark.client("redis")
async def test_what_redis_keeps_is_bounded_and_ends(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "MAX_PEERS", 100)
    prefix = f"{uuid4()}:"
    client: Redis = Redis.from_url(redis.url)
    async with trackers(redis, prefix=prefix) as [store]:
        for number in range(1, 250):
            await join(store, peer(number))
    keys = [f"{prefix}{BLOB}:peers", f"{prefix}{BLOB}:heard"]
    pipeline = client.pipeline()
    for command, key in (("HLEN", keys[0]), ("ZCARD", keys[1]), ("TTL", keys[0]), ("TTL", keys[1])):
        pipeline.execute_command(command, key)
    peers, heard, peers_ttl, heard_ttl = await pipeline.execute()
    await client.aclose()
    assert peers == heard == 100
    assert 0 < peers_ttl <= TTL
    assert 0 < heard_ttl <= TTL


@pytest.mark.client("redis")
async def test_without_redis_joins_are_answered_from_memory_and_it_says_so(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path) as server:
        async with trackers(server) as [store]:
            await join(store, peer(1))
            server.kill()
            assert await join(store, peer(2), OTHER_BLOB) == []
            assert await join(store, peer(2)) == [peer(1)]
            assert [line.partition(": ")[0] for line in store.missing()] == [
                "redis " + server.url.removeprefix("redis://")
            ]
            server.run()
            await until(lambda: asyncio.sleep(0.0, store.missing()), lambda missing: not missing)


@pytest.mark.client("redis")
async def test_what_was_heard_while_redis_was_down_is_written_when_it_is_back(
    tmp_path: Path,
) -> None:
    with RedisServer.start(tmp_path) as server:
        async with trackers(server, 2) as [one, other]:
            server.kill()
            await join(one, peer(1), complete=True)
            server.run()
            await until(lambda: join(other, peer(2)), lambda told: told == [peer(1)])


@pytest.mark.client("redis")
async def test_a_redis_that_hangs_holds_up_the_first_joins_for_a_second_and_no_others(
    tmp_path: Path,
) -> None:
    with RedisServer.start(tmp_path) as server:
        async with trackers(server) as [store]:
            await join(store, peer(1))
            server.freeze()
            async with asyncio.timeout(3 * redis_store.TIMEOUT):
                await join(store, peer(2), OTHER_BLOB)
            assert store.missing()
            async with asyncio.timeout(redis_store.TIMEOUT / 2):
                for number in range(3, 50):
                    await join(store, peer(number), f"sha256:{number:064x}")
