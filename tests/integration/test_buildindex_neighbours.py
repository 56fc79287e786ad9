# SPDX-License-Identifier: Apache-2.0
"""Build-indexes that replicate to each other over real sockets, with clocks that the test sets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shoal.buildindex.clock import Version
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.records import MAX_BATCH, Changes, ManifestEntry, Record
from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, ManifestUnknown, NameUnknown
from shoal.model.media_types import OCI_MANIFEST
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from tests.unit.buildindex.index_node import TWICE, Node, image, index_of, serving

CONFIG, LAYER = Digest.of(b"config"), Digest.of(b"layer")
DAY = 86400.0


def empty_index(number: int) -> bytes:
    return index_of(annotations={"n": str(number)})


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


@asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Two build-indexes that have heard of each other."""
    one, two = await free_addresses(2)
    async with (
        serving(folder / "1", two, address=one) as first,
        serving(folder / "2", one, address=two) as second,
    ):
        for node in (first, second):
            await until(partial(hears_all, node))
        yield first, second


@asynccontextmanager
async def one_way(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    """A writer, and a listener that rarely asks it by itself.

    The writer does not know the listener, as if every message to it was lost.
    """
    async with (
        serving(folder / "1") as writer,
        serving(folder / "2", writer.address, interval=600.0, existence=TWICE) as listener,
    ):
        yield writer, listener


async def is_ready(node: Node) -> bool:
    return await node.index.readiness() == []


async def hears_all(node: Node) -> bool:
    return node.neighbours.silent() == []


async def lists_app(node: Node) -> bool:
    return (await node.index.repositories("", None)).names == ["app"]


def soon() -> Deadline:
    return Deadline.after(10.0)


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
        serving(tmp_path / "1", two, address=one, ahead=3600) as fast,
        serving(tmp_path / "2", one, address=two, ahead=-3600) as slow,
    ):
        for number in range(6):
            writer = (fast, slow)[number % 2]
            digest = await writer.adopt(empty_index(number))
            assert await fast.index.get_tag("app", "latest", soon()) == digest
            assert await slow.index.get_tag("app", "latest", soon()) == digest


async def test_a_deletion_holds_everywhere_and_until_the_next_push(tmp_path: Path) -> None:
    async with pair(tmp_path) as (first, second):
        digest = await first.push_image("one", "v1", "v2")
        await second.index.delete_tag("app", "v1")
        assert await first.tags() == ["v2"]
        await second.index.delete_manifest("app", digest)
        for node in (first, second):
            assert await node.find("v2") is None
            with pytest.raises(NameUnknown):
                await node.tags()
        await second.index.delete_blob("app", Digest.of(b"layer of one"))
        assert not await first.has(Digest.of(b"layer of one"))
        await second.push_image("one", "v2")
        assert await first.tags() == ["v2"]
        assert await first.has(Digest.of(b"layer of one"))


async def test_a_build_index_that_starts_has_everything_before_it_serves(tmp_path: Path) -> None:
    async with serving(tmp_path / "1") as old:
        count = 2 * MAX_BATCH + 500
        digest = str(Digest.of(b"x"))
        version = Version(1, 0, "0" * 16)
        await old.index.accept(
            [Record("tag", "app", f"t{number}", digest, version) for number in range(count)]
        )
        large = ManifestEntry(OCI_MANIFEST, 1, annotations={"a": "x" * 3_500_000})
        for number in range(5):  # more than one answer holds
            name = str(Digest.of(bytes([number])))
            await old.index.accept([Record("manifest", "app", name, large, version)])
        async with serving(tmp_path / "2", old.address) as new:
            assert len(await new.tags()) == count
            assert await new.find(Digest.of(bytes([4]))) is not None
            assert new.neighbours.behind() == []


async def test_large_writes_reach_the_neighbours_in_parts(tmp_path: Path) -> None:
    async with pair(tmp_path) as (first, second):
        layers = [Digest.of(str(number).encode()) for number in range(1_500)]
        body = image(CONFIG, *layers, annotations={"a": "x" * 3_500_000})
        await first.adopt(body, "v1")
        await until(partial(lists_app, second))
        assert await second.find("v1") is not None
        assert all([await second.has(layer) for layer in layers[::100]])


async def test_naming_oneself_as_a_neighbour_does_no_harm(tmp_path: Path) -> None:
    own, other = await free_addresses(2)
    async with (
        serving(tmp_path / "1", own, other, address=own) as first,
        serving(tmp_path / "2", own, other, address=other) as second,
    ):
        digest = await first.adopt(empty_index(1))
        assert await second.index.get_tag("app", "latest", soon()) == digest
        await until(lambda: is_ready(first))
        assert first.neighbours.silent() == []
        assert (await first.index.collect(dry_run=True, grace=None)).items == []


async def test_a_neighbour_that_never_answers_holds_a_push_up_once_and_briefly(
    tmp_path: Path,
) -> None:
    hung = asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hung.wait()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    http = HttpClient(user_agent="test")
    try:
        async with serving(tmp_path / "1") as alone:
            neighbours = Neighbours(http, alone.store, [address], timeout=0.6, interval=60.0)
            record = Record("tag", "app", "v", str(LAYER), Version(1, 0, "0" * 16))
            spans = []
            for ask in (
                lambda: neighbours.spread([record]),
                lambda: neighbours.spread([record]),
                neighbours.refresh,
            ):
                started = time.monotonic()
                await ask()
                spans.append(time.monotonic() - started)
            assert 0.5 < spans[0] < 2.0
            assert max(spans[1:]) < spans[0]
            assert neighbours.silent() == [address]
    finally:
        await http.close()
        hung.set()
        server.close()


async def test_a_node_that_missed_a_write_asks_for_it(tmp_path: Path) -> None:
    one, two = await free_addresses(2)
    async with (
        serving(tmp_path / "2", one, address=two) as listener,
        # The writer does not know its neighbour, as if every message to it was lost.
        serving(tmp_path / "1", address=one) as writer,
    ):
        digest = await writer.adopt(empty_index(1))
        await until(lambda: lists_app(listener))
        assert await listener.index.get_tag("app", "latest", soon()) == digest


async def test_a_push_whose_blobs_a_neighbour_knows_does_not_wait_for_the_next_round(
    tmp_path: Path,
) -> None:
    async with one_way(tmp_path) as (writer, listener):
        await writer.link(CONFIG, LAYER)
        await listener.push(image(CONFIG, LAYER), "v1")
        assert await listener.tags() == ["v1"]


async def test_before_something_is_said_not_to_be_there_the_neighbours_are_asked(
    tmp_path: Path,
) -> None:
    async with one_way(tmp_path) as (writer, listener):
        await writer.link(LAYER, repository="base")
        await listener.index.mount("new", LAYER, "base")
        await writer.push_image("one", "v1", "v2")
        await listener.index.delete_tag("app", "v1")
        digest = await writer.push_image("two", "v3")
        await listener.index.delete_manifest("app", digest)
        assert await listener.tags() == ["v2"]
        await writer.link(CONFIG, repository="more")
        await listener.index.delete_blob("more", CONFIG)
        with pytest.raises(BlobUnknown):
            await listener.index.mount("new", CONFIG, "base")
        with pytest.raises(ManifestUnknown):
            await listener.index.delete_tag("app", "never")


async def test_questions_to_the_neighbours_are_shared_and_never_older_than_their_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_way(tmp_path) as (writer, listener):
        await until(lambda: is_ready(listener))
        answered, go_on = asyncio.Event(), asyncio.Event()
        ask = listener.neighbours._ask
        asked = 0

        async def slowly(neighbour: Any, after: int) -> Changes:
            nonlocal asked
            asked += 1
            changes = await ask(neighbour, after)
            answered.set()
            await go_on.wait()
            return changes

        monkeypatch.setattr(listener.neighbours, "_ask", slowly)
        await writer.link(LAYER)
        first = asyncio.create_task(listener.neighbours.refresh())
        await answered.wait()
        await writer.link(CONFIG)
        rest = [asyncio.create_task(listener.neighbours.refresh()) for _ in range(20)]
        await asyncio.sleep(0)
        go_on.set()
        assert all(await asyncio.gather(first, *rest))
        assert asked == 2
        assert await listener.has(LAYER)
        assert await listener.has(CONFIG)


async def test_what_is_collected_here_and_renewed_there_stays(tmp_path: Path) -> None:
    async with pair(tmp_path) as (first, second):
        await first.link(LAYER, CONFIG)
        first.ahead = second.ahead = 2 * DAY
        # The renewal reaches the collecting node only after that has judged.
        second.neighbours._all.clear()
        contents = await first.store.contents("app")
        assert len(contents.links) == 2
        assert await second.has(LAYER, rely=True)
        first.neighbours._all, others = [], first.neighbours._all
        report = await first.index.collect(dry_run=False, grace=None)
        assert report.condemned_links == 2
        first.neighbours._all = others
        await second.index.accept((await first.index.changes(0, 100)).records)
        await first.index.accept((await second.index.changes(0, 100)).records)
        for node in (first, second):
            assert await node.has(LAYER)
            assert not await node.has(CONFIG)


async def test_a_collection_reaches_the_neighbours(tmp_path: Path) -> None:
    async with pair(tmp_path) as (first, second):
        await second.link(LAYER)
        first.ahead = 2 * DAY
        await first.index.collect(dry_run=False, grace=None)
        assert not await second.has(LAYER)
