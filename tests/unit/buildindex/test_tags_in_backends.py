# SPDX-License-Identifier: Apache-2.0
"""Tags that are kept in a backend besides: written after a push, and read where no record is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from shoal.backend.base import BlobName, LinkName, Name, TagName
from shoal.backend.config import BackendConfig, BackendsConfig
from shoal.backend.local import LocalBackend
from shoal.backend.matching import Backends
from shoal.buildindex import storage
from shoal.buildindex.clock import Version
from shoal.buildindex.elsewhere import Elsewhere
from shoal.buildindex.listing import Part, merged
from shoal.buildindex.lookups import Question
from shoal.buildindex.records import Record
from shoal.model.digest import Digest
from shoal.model.errors import ManifestUnknown, SourceFailed
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from tests.unit.buildindex.index_node import Node, image, index_of, serving, soon

CONFIG, LAYER = Digest.of(b"config"), Digest.of(b"layer")


def local(folder: Path) -> tuple[BackendConfig, ...]:
    config = [{"kind": "local", "match": "app|other", "path": str(folder)}]
    return TypeAdapter[tuple[BackendConfig, ...]](BackendsConfig).validate_python(config)


@asynccontextmanager
async def bucket(folder: Path) -> AsyncIterator[Backends]:
    """The backend as another registry, or an operator, sees it."""
    http = HttpClient(user_agent="test")
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 -- a temporary folder of the test
    backends = Backends.open(local(folder), {}, http)
    try:
        yield backends
    finally:
        await backends.close()
        await http.close()


def node_over(folder: Path, data: str = "index", **given: Any) -> Any:
    return serving(folder / data, backends=local(folder / "bucket"), **given)


async def stored(backends: Backends, tag: str) -> str | None:
    matched = backends.for_tags("app")
    assert matched is not None
    size = await matched.backend.stat(TagName("app", tag), deadline=soon())
    if size is None:
        return None
    async with matched.backend.get(TagName("app", tag), deadline=soon()) as content:
        return b"".join([chunk async for chunk in content.chunks()]).decode()


async def until_stored(backends: Backends, tag: str, wanted: str | None) -> None:
    async with asyncio.timeout(10.0):
        # A backend tells nobody when it was written.
        while await stored(backends, tag) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def put(backends: Backends, name: TagName | LinkName, digest: Digest) -> None:
    matched = backends.for_tags("app")
    assert matched is not None
    await matched.backend.put(name, str(digest).encode(), deadline=soon())


async def hold(backends: Backends, *digests: Digest) -> None:
    """What the origins write to the backend."""
    matched = backends.for_blobs("app")
    assert matched is not None
    for digest in digests:
        await matched.backend.put(BlobName("app", digest), b"content", deadline=soon())


def parts_of(name: str) -> tuple[Digest, Digest]:
    """The blobs of an image that a node pushed."""
    return Digest.of(f"config of {name}".encode()), Digest.of(f"layer of {name}".encode())


async def test_a_push_a_move_and_a_deletion_reach_the_backend(tmp_path: Path) -> None:
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        await node.write_back()
        first = await node.push_image("one", "v1")
        await hold(backends, first, *parts_of("one"))
        await until_stored(backends, "v1", str(first))
        second = await node.push_image("two", "v1")
        await hold(backends, second, *parts_of("two"))
        await until_stored(backends, "v1", str(second))
        await node.index.delete_tag("app", "v1")
        await until_stored(backends, "v1", None)


async def test_nobody_sees_a_tag_or_a_link_in_the_backend_before_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Name] = []
    tag_written = asyncio.Event()
    put_there = LocalBackend.put

    async def noting(
        backend: LocalBackend, name: Name, source: bytes, *, deadline: Deadline
    ) -> None:
        await put_there(backend, name, source, deadline=deadline)
        written.append(name)
        if name == TagName("app", "v1"):
            tag_written.set()

    monkeypatch.setattr(LocalBackend, "put", noting)
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        await node.write_back()
        child = await node.push_image("one")
        root = await node.push(index_of(child), "v1")
        for digest in (root, child, *parts_of("one")):
            await until_tried(node, str(root))
            assert TagName("app", "v1") not in written
            await hold(backends, digest)
        # Its file can be read a moment before the put of it returns.
        async with asyncio.timeout(10.0):
            await tag_written.wait()
        assert await stored(backends, "v1") == str(root)
        needs: list[tuple[Name, list[Name]]] = [
            (TagName("app", "v1"), [LinkName("app", root, "manifest")]),
            (LinkName("app", root, "manifest"), [LinkName("app", child, "manifest")]),
            (
                LinkName("app", child, "manifest"),
                [LinkName("app", part, "blob") for part in parts_of("one")],
            ),
            (LinkName("app", root, "manifest"), [BlobName("app", root)]),
            (LinkName("app", child, "manifest"), [BlobName("app", child)]),
        ]
        needs += [
            (LinkName("app", part, "blob"), [BlobName("app", part)]) for part in parts_of("one")
        ]
        for name, before in needs:
            assert all(written.index(needed) < written.index(name) for needed in before)


async def until_tried(node: Node, named: str) -> None:
    """Wait until the queue has tried once more to write the link of a manifest."""
    assert node.writeback is not None

    async def failures() -> int:
        assert node.writeback is not None
        tasks = await node.writeback.tasks()
        return sum(task.failures for task in tasks if task.key == f"app@{named}")

    before = await failures()
    async with asyncio.timeout(10.0):
        while await failures() == before:  # noqa: ASYNC110 -- a queue tells nobody of failures
            await asyncio.sleep(0.02)


async def test_what_was_acknowledged_before_the_queue_was_reached_is_written_at_the_next_start(
    tmp_path: Path,
) -> None:
    async with bucket(tmp_path / "bucket") as backends:
        async with node_over(tmp_path) as node:
            digest = await node.push_image("one", "v1")
        assert await stored(backends, "v1") is None
        async with node_over(tmp_path) as node:
            await node.write_back()
            await hold(backends, digest, *parts_of("one"))
            await until_stored(backends, "v1", str(digest))


async def test_a_bucket_that_another_registry_filled_serves_at_once(tmp_path: Path) -> None:
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        digest = node.origins.store(image(CONFIG, LAYER))
        await put(backends, TagName("app", "v1"), digest)
        found = await node.find("v1")
        assert found is not None
        assert found.digest == digest
        assert await node.has(LAYER)
        assert not await node.has(LAYER, "other")


async def test_a_manifest_and_a_blob_are_known_by_their_links(tmp_path: Path) -> None:
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        digest = node.origins.store(image(CONFIG))
        await put(backends, LinkName("app", digest, "manifest"), digest)
        await put(backends, LinkName("app", LAYER, "blob"), LAYER)
        assert await node.find(digest) is not None
        assert await node.find(digest, "other") is None
        assert await node.has(LAYER)


async def test_what_is_written_while_it_is_looked_up_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_questions = Elsewhere.open_questions

    async def after_a_write(
        elsewhere: Elsewhere, asked: Sequence[tuple[Question, bool]]
    ) -> list[Question]:
        await node.index.link("app", LAYER)
        return await open_questions(elsewhere, asked)

    async with node_over(tmp_path) as node:
        monkeypatch.setattr(Elsewhere, "open_questions", after_a_write)
        assert await node.has(LAYER)


async def test_a_wiped_build_index_comes_back(tmp_path: Path) -> None:
    async with bucket(tmp_path / "bucket") as backends:
        async with node_over(tmp_path) as node:
            await node.write_back()
            digest = await node.push_image("one", "v1")
            bodies = node.origins.bodies
            await hold(backends, digest, *parts_of("one"))
            await until_stored(backends, "v1", str(digest))
        async with node_over(tmp_path, "another") as node:
            node.origins.bodies |= bodies
            assert await node.tags() == ["v1"]
            found = await node.find("v1")
            assert found is not None
            assert found.digest == digest


async def test_a_deleted_tag_stays_deleted_while_the_backend_still_has_it(tmp_path: Path) -> None:
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        digest = await node.push_image("one", "v1")
        await put(backends, TagName("app", "v1"), digest)
        await node.index.delete_tag("app", "v1")
        assert await node.find("v1") is None
        assert await node.tags() == []
        with pytest.raises(ManifestUnknown):
            await node.index.get_tag("app", "v1", soon())


async def test_a_deletion_is_remembered_until_the_backend_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = True
    delete_there = LocalBackend.delete

    async def delete(backend: LocalBackend, name: Name, *, deadline: Deadline) -> bool:
        if down:
            raise Unreachable("DELETE", backend.description, "it is down")
        return await delete_there(backend, name, deadline=deadline)

    monkeypatch.setattr(LocalBackend, "delete", delete)
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        digest = await node.push_image("one", "v1")
        await put(backends, TagName("app", "v1"), digest)
        await node.index.delete_tag("app", "v1")
        await node.write_back()
        node.ahead += 100 * 86400.0
        await node.collector.collect(dry_run=False)
        assert await node.find("v1") is None
        down = False
        await until_stored(backends, "v1", None)
        await until_told(node)
        await node.collector.collect(dry_run=False)
        changes = await node.index.changes(0, 1000)
        assert all(record.value is not None for record in changes.records)
        assert await node.find("v1") is None


async def test_a_tag_that_was_pushed_while_its_manifest_was_deleted_elsewhere_leaves_the_backend(
    tmp_path: Path,
) -> None:
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        await node.write_back()
        digest = await node.push_image("one", "v1")
        await hold(backends, digest, *parts_of("one"))
        await until_stored(backends, "v1", str(digest))
        later = Version(node.wall_ms() + 1, 0, "0" * 16)
        await node.neighbours.accept([Record("manifest", "app", str(digest), None, later)])
        assert await node.find("v1") is None
        await until_stored(backends, "v1", None)


async def until_told(node: Node) -> None:
    assert node.writeback is not None
    async with asyncio.timeout(10.0):
        # A backend tells nobody when it was written.
        while await node.writeback.oldest_deletion() is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_backend_that_cannot_be_asked_is_not_an_absent_tag(tmp_path: Path) -> None:
    async with node_over(tmp_path) as node:
        digest = await node.push_image("one", "v1")
        folder = tmp_path / "bucket"
        if folder.exists():
            folder.rmdir()
        folder.write_bytes(b"no folder")
        with pytest.raises(SourceFailed):
            await node.find("v2")
        found = await node.find("v1")
        assert found is not None
        assert found.digest == digest


async def test_a_push_hardly_waits_for_a_backend_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Name] = []

    async def hang(_: LocalBackend, name: Name, *, deadline: Deadline) -> int | None:
        asked.append(name)
        await asyncio.sleep(deadline.remaining())
        return None

    monkeypatch.setattr(LocalBackend, "stat", hang)
    monkeypatch.setattr(storage, "PUSH_PATIENCE", 0.05)
    async with asyncio.timeout(5.0), node_over(tmp_path) as node:
        for layer in (LAYER, CONFIG):
            assert not await node.has(layer, rely=True)
        assert asked == [LinkName("app", LAYER, "blob")]
        # Nor does the look for the tag that is about to be pushed.
        looked = await node.index.lookup([("app", "v1")], [], rely=True, deadline=soon())
        assert looked.manifests == [None]
        # Those who want to know wait, and are told that it cannot be told.
        question = [("app", str(CONFIG))]
        with pytest.raises(SourceFailed):
            await node.index.lookup([], question, rely=False, deadline=Deadline.after(0.05))


async def test_an_absence_is_remembered_and_a_push_ends_that(tmp_path: Path) -> None:
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        assert await node.find("v1") is None
        digest = node.origins.store(image(CONFIG, LAYER))
        await put(backends, TagName("app", "v1"), digest)
        assert await node.find("v1") is None
        pushed = await node.push_image("one", "v1")
        found = await node.find("v1")
        assert found is not None
        assert found.digest == pushed


async def test_garbage_collection_leaves_what_came_from_the_backend(tmp_path: Path) -> None:
    async with bucket(tmp_path / "bucket") as backends, node_over(tmp_path) as node:
        await put(backends, LinkName("app", LAYER, "blob"), LAYER)
        assert await node.has(LAYER)
        await node.collector.collect(dry_run=False, grace=0.001)
        assert await node.has(LAYER)


def test_lists_are_merged_up_to_where_all_are_known() -> None:
    records = Part(["a", "c", "x"], more=False)
    backend = Part(["b", "c", "d"], more=True, end="d")
    shown, rest = merged([records, backend], 10)
    assert shown == ["a", "b", "c", "d"]
    assert rest == Part((), more=True, end="d")
    assert merged([records, backend], 2) == (["a", "b"], Part((), more=True, end="b"))
    assert merged([records], 10) == (["a", "c", "x"], Part((), more=False, end=""))
