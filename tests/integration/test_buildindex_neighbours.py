# SPDX-License-Identifier: Apache-2.0
"""Build-indexes that replicate to each other over real sockets, with clocks that the test sets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from shoal.buildindex.api import Api
from shoal.buildindex.clock import Version
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.records import MAX_BATCH, TagRecord
from shoal.buildindex.resolver import Resolver
from shoal.buildindex.service import BuildIndex
from shoal.buildindex.tags import TagDatabase, TagStore
from shoal.model.digest import Digest
from shoal.origin.client import Presence
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.server import application
from shoal.web.serving import listening

EMPTY_INDEX = b'{"schemaVersion": 2, "manifests": [], "annotations": {"n": "%d"}}'


class OriginsWithEverything:
    """Has each blob that it is asked for."""

    members = ("o1", "o2")

    async def read(self, digest: Digest, *, deadline: Deadline, limit: int) -> bytes:
        raise AssertionError(f"{digest} comes with its body ({deadline}, {limit})")

    async def stat_many(self, digests: Iterable[Digest], *, deadline: Deadline) -> Presence:
        assert not deadline.expired
        wanted = list(digests)
        hosts = frozenset({"o1", "o2"})
        return Presence(dict.fromkeys(wanted, 1), dict.fromkeys(wanted, hosts), {})

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int:
        raise AssertionError(f"{digest} is on {holders} ({deadline})")


async def nothing_missing() -> list[str]:
    return []


class Node:
    """A build-index in this process."""

    def __init__(self, index: BuildIndex, neighbours: Neighbours, address: str) -> None:
        self.index = index
        self.neighbours = neighbours
        self.address = address

    async def put(self, number: int, tag: str = "latest") -> str:
        body = EMPTY_INDEX % number
        digest = Digest.of(body)
        await self.index.put_tag("app", tag, digest, body, None, deadline=Deadline.after(10.0))
        return str(digest)

    async def get(self, tag: str = "latest") -> str:
        return (await self.index.get_tag("app", tag)).digest


@asynccontextmanager
async def node(
    folder: Path,
    *neighbours: str,
    address: str = "127.0.0.1:0",
    ahead: float = 0.0,
    timeout: float = 2.0,
) -> AsyncIterator[Node]:
    """Run a build-index whose clock is `ahead` seconds off."""
    async with AsyncExitStack() as stack:
        http = HttpClient(user_agent="test")
        stack.push_async_callback(http.close)
        store = TagStore(TagDatabase(folder))
        made: list[Neighbours] = []

        def connect(index: BuildIndex) -> Neighbours:
            made.append(
                Neighbours(http, store, neighbours, index.accept, timeout=timeout, interval=0.1)
            )
            return made[0]

        index = BuildIndex(
            store,
            Resolver(OriginsWithEverything(), 2),
            neighbours=connect,
            origins_missing=nothing_missing,
            wall_ms=lambda: int((time.time() + ahead) * 1000),
        )
        stack.push_async_callback(index.stop)
        app = application("build-index", readiness=index.readiness)
        Api(index).add_routes(app)
        await index.start(5.0)
        addresses = await stack.enter_async_context(listening([(app, address)], grace=1.0))
        yield Node(index, made[0], addresses[0])


async def free_addresses(count: int) -> list[str]:
    """Addresses on which nobody listens, for nodes that must know each other before they start."""
    servers = [await asyncio.start_server(_ignore, "127.0.0.1", 0) for _ in range(count)]
    found = ["{}:{}".format(*server.sockets[0].getsockname()) for server in servers]
    for server in servers:
        server.close()
        await server.wait_closed()
    return found


async def _ignore(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def is_ready(node: Node) -> bool:
    return await node.index.readiness() == []


async def lists_app(node: Node) -> bool:
    return (await node.index.repositories("", None)).names == ["app"]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again; for what happens between processes."""
    async with asyncio.timeout(10.0):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


async def test_the_last_push_wins_whatever_the_clocks_say(tmp_path: Path) -> None:
    one, two = await free_addresses(2)
    async with (
        node(tmp_path / "1", two, address=one, ahead=3600) as fast,
        node(tmp_path / "2", one, address=two, ahead=-3600) as slow,
    ):
        for number in range(6):
            writer = (fast, slow)[number % 2]
            digest = await writer.put(number)
            assert await fast.get() == digest
            assert await slow.get() == digest


async def test_a_build_index_that_starts_has_all_tags_before_it_serves(tmp_path: Path) -> None:
    async with node(tmp_path / "1") as old:
        count = 2 * MAX_BATCH + 500
        digest = str(Digest.of(b"x"))
        await old.index.accept(
            [
                TagRecord("app", f"t{number}", digest, Version(number, 0, "0" * 16))
                for number in range(count)
            ]
        )
        async with node(tmp_path / "2", old.address) as new:
            assert len((await new.index.tags("app", "", None)).names) == count
            assert new.neighbours.behind() == []


async def test_naming_oneself_as_a_neighbour_does_no_harm(tmp_path: Path) -> None:
    own, other = await free_addresses(2)
    async with (
        node(tmp_path / "1", own, other, address=own) as first,
        node(tmp_path / "2", own, other, address=other) as second,
    ):
        digest = await first.put(1)
        assert await second.get() == digest
        await until(lambda: is_ready(first))
        assert first.neighbours.silent() == []


async def test_a_neighbour_that_never_answers_holds_a_push_up_once_and_briefly(
    tmp_path: Path,
) -> None:
    hung = asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hung.wait()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    try:
        async with node(tmp_path / "1") as alone:
            neighbours = Neighbours(
                (http := HttpClient(user_agent="test")),
                alone.index._store,
                [address],
                alone.index.accept,
                timeout=0.6,
                interval=60.0,
            )
            record = TagRecord("app", "v", str(Digest.of(b"x")), Version(1, 0, "0" * 16))
            spans = []
            for _ in range(2):
                started = time.monotonic()
                await neighbours.spread(record)
                spans.append(time.monotonic() - started)
            assert 0.5 < spans[0] < 2.0
            assert spans[1] < spans[0]
            assert neighbours.silent() == [address]
            await http.close()
    finally:
        hung.set()
        server.close()


async def test_a_node_that_missed_a_write_asks_for_it(tmp_path: Path) -> None:
    one, two = await free_addresses(2)
    async with (
        node(tmp_path / "2", one, address=two) as listener,
        # The writer does not know its neighbour, as if every message to it was lost.
        node(tmp_path / "1", address=one) as writer,
    ):
        digest = await writer.put(1)
        await until(lambda: lists_app(listener))
        assert await listener.get() == digest
