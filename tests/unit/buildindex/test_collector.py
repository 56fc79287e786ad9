# SPDX-License-Identifier: Apache-2.0
"""Garbage collection of a build-index's records, as an operator sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.buildindex import collector as module
from shoal.buildindex.config import GcConfig
from shoal.model.digest import Digest
from shoal.model.errors import Unavailable
from tests.unit.buildindex.index_node import Node, image, index_of

HOUR = 3600.0
DAY = 24 * HOUR
STRAY = Digest.of(b"stray")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path, gc=GcConfig(interval=0, untagged="remove"))
    yield node
    await node.stop()


async def test_a_dry_run_says_what_would_go_and_changes_nothing(node: Node) -> None:
    digest = await node.push_image("one")
    await node.link(STRAY)
    node.ahead = 2 * DAY
    report = await node.collector.collect(dry_run=True)
    assert report.dry_run
    assert {(item.kind, item.name) for item in report.items} == {
        ("manifest", str(digest)),
        ("blob", str(STRAY)),
        ("blob", str(Digest.of(b"layer of one"))),
        ("blob", str(Digest.of(b"config of one"))),
    }
    assert (report.repositories, report.manifests, report.links) == (1, 1, 3)
    assert set(report.released) == {item.name for item in report.items}
    assert await node.find(digest) is not None
    assert await node.has(STRAY)


async def test_a_dry_run_releases_only_what_no_other_repository_has(node: Node) -> None:
    await node.link(STRAY)
    node.ahead = 2 * DAY
    await node.link(STRAY, repository="other")
    report = await node.collector.collect(dry_run=True)
    assert [(item.repository, item.name) for item in report.items] == [("app", str(STRAY))]
    assert report.released == []


async def test_what_nothing_needs_goes_and_the_rest_stays(node: Node) -> None:
    tagged = await node.push_image("tagged", "v1")
    untagged = await node.push_image("untagged")
    child = await node.push_image("child")
    top = await node.push(index_of(child), "all")
    node.ahead = 2 * DAY
    report = await node.collector.collect(dry_run=False)
    assert report.condemned_manifests == 1
    assert await node.find(untagged) is None
    assert not await node.has(Digest.of(b"layer of untagged"))
    for kept in (tagged, child, top):
        assert await node.find(kept) is not None
    assert await node.has(Digest.of(b"layer of child"))
    assert (await node.collector.collect(dry_run=False)).items == []


async def test_what_is_younger_than_the_grace_time_stays(node: Node) -> None:
    await node.link(STRAY)
    node.ahead = DAY - HOUR
    assert (await node.collector.collect(dry_run=False)).items == []
    assert len((await node.collector.collect(dry_run=True, grace=HOUR)).items) == 1


async def test_an_untagged_manifest_is_kept_unless_it_is_to_be_removed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    try:
        digest = await node.push_image("one")
        node.ahead = 9 * DAY
        assert (await node.collector.collect(dry_run=False)).items == []
        assert await node.find(digest) is not None
    finally:
        await node.stop()


async def test_deletions_are_made_in_steps(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 3)
    monkeypatch.setattr(module, "PAGE", 2)
    strays = [Digest.of(bytes([number])) for number in range(10)]
    for repository in ("a", "b", "c", "d", "e"):
        await node.link(*strays, repository=repository)
    node.ahead = 2 * DAY
    report = await node.collector.collect(dry_run=False)
    assert (report.repositories, report.condemned_links) == (5, 50)
    assert await node.index.wanted([str(stray) for stray in strays]) == []


async def test_deletions_are_forgotten_after_their_time(node: Node) -> None:
    await node.push_image("one", "v1")
    await node.index.delete_tag("app", "v1")
    node.ahead = 29 * DAY
    await node.collector.collect(dry_run=False)
    names = {record.name for record in (await node.index.changes(0, 100)).records}
    assert "v1" in names
    node.ahead = 31 * DAY
    await node.collector.collect(dry_run=True)
    assert {r.name for r in (await node.index.changes(0, 100)).records} == names
    await node.collector.collect(dry_run=False)
    left = (await node.index.changes(0, 100)).records
    # The deletions of the first collection have the times of what they deleted.
    assert left == []


async def test_nothing_is_collected_while_a_neighbour_cannot_be_asked(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    server.close()
    node = Node(tmp_path, [f"{host}:{port}"])
    try:
        await node.link(STRAY)
        node.ahead = 2 * DAY
        with pytest.raises(Unavailable, match=f"{host}:{port}"):
            await node.collector.collect(dry_run=False)
        assert await node.has(STRAY)
    finally:
        await node.stop()


async def test_garbage_is_collected_at_intervals_and_a_failure_does_not_end_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, gc=GcConfig(interval=0.01))
    runs = 0
    enough = asyncio.Event()

    async def collect(*, dry_run: bool) -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            enough.set()
        assert not dry_run
        raise Unavailable("not now") if runs == 1 else ZeroDivisionError

    monkeypatch.setattr(node.collector, "collect", collect)
    try:
        node.collector.start()
        await asyncio.wait_for(enough.wait(), 10.0)
    finally:
        await node.stop()


async def test_pushes_of_the_same_layers_while_garbage_is_collected_are_whole(
    node: Node,
) -> None:
    """Old layers are pushed again, by manifests that nothing had referenced, while they are judged.

    Whatever the order: a push that was accepted is complete.
    """
    layers = [Digest.of(f"layer {number}".encode()) for number in range(30)]
    config = Digest.of(b"config")
    await node.link(config, *layers)
    node.ahead = 2 * DAY

    async def push(number: int) -> Digest:
        layer = layers[number]
        for blob in (config, layer):
            if not await node.has(blob, rely=True):
                await node.link(blob)
        return await node.push(image(config, layer), f"t{number}")

    pushes = [push(number) for number in range(len(layers))]
    _, *pushed = await asyncio.gather(node.collector.collect(dry_run=False), *pushes)
    await node.collector.collect(dry_run=False)
    assert len(pushed) == len(layers)
    for blob in (config, *layers):
        assert await node.has(blob)
