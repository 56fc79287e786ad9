# SPDX-License-Identifier: Apache-2.0
"""One build-index without neighbours: what its operations promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shoal.buildindex import writes
from shoal.buildindex.config import GcConfig
from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUnknown,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
    Unavailable,
    Unsupported,
)
from shoal.model.media_types import OCI_MANIFEST
from tests.unit.buildindex.index_node import Node, image, index_of, soon

CONFIG, LAYER, OTHER = (Digest.of(name.encode()) for name in ("config", "layer", "other"))
HOUR = 3600.0


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.index.start(1.0)
    yield node
    await node.stop()


async def test_an_image_is_found_by_tag_and_digest_once_it_is_pushed(node: Node) -> None:
    await node.link(CONFIG, LAYER)
    body = image(CONFIG, LAYER)
    digest = await node.push(body, "v1", "latest")
    assert await node.tags() == ["latest", "v1"]
    found = await node.find("v1")
    assert found is not None
    assert (found.digest, found.media_type, found.size) == (digest, OCI_MANIFEST, len(body))
    assert await node.find(digest) == found
    assert await node.find(digest, "other") is None
    assert await node.find("v2") is None


async def test_a_manifest_whose_blobs_are_those_of_another_repository_is_refused(
    node: Node,
) -> None:
    await node.link(CONFIG, LAYER, repository="other")
    await node.link(CONFIG)
    with pytest.raises(ManifestBlobUnknown, match="push them first") as refused:
        await node.push(image(CONFIG, LAYER), "v1")
    assert refused.value.detail["missing"] == [str(LAYER)]
    with pytest.raises(NameUnknown):
        await node.tags()


async def test_an_index_needs_its_children_in_the_same_repository(node: Node) -> None:
    child = await node.push_image("child")
    await node.push(index_of(child), "all")
    await node.link(CONFIG, LAYER, repository="other")
    with pytest.raises(ManifestBlobUnknown) as refused:
        await node.push(index_of(child), "all", repository="other")
    assert str(child) in refused.value.detail["missing"]
    await node.push(index_of(child), "sparse", repository="other", index_children="present")
    assert await node.tags("other") == ["sparse"]


async def test_the_trusted_api_makes_all_that_a_tag_needs_part_of_the_repository(
    node: Node,
) -> None:
    child = node.origins.store(image(CONFIG, LAYER))
    top = await node.adopt(index_of(child), "all")
    assert await node.index.get_tag("app", "all", soon()) == top
    assert await node.find(child) is not None
    assert [await node.has(blob) for blob in (CONFIG, LAYER, OTHER)] == [True, True, False]
    again = await node.push(image(CONFIG, LAYER), "v1")
    assert again == child


async def test_a_subject_and_annotations_are_known_of_a_manifest(node: Node) -> None:
    await node.link(CONFIG)
    subject = {"mediaType": OCI_MANIFEST, "digest": str(OTHER), "size": 1}
    signature = await node.push(
        image(CONFIG, subject=subject, artifactType="text/sig", annotations={"by": "me"})
    )
    (found,) = (await node.index.referrers("app", OTHER, None, "", None)).referrers
    assert (found.digest, found.artifact_type) == (str(signature), "text/sig")
    assert found.annotations == {"by": "me"}
    assert (await node.index.referrers("app", OTHER, "text/b", "", None)).referrers == []
    assert len((await node.index.referrers("app", OTHER, "", "", None)).referrers) == 1


async def test_what_is_deleted_is_unknown(node: Node) -> None:
    digest = await node.push_image("one", "v1", "v2")
    await node.index.delete_tag("app", "v1")
    assert await node.tags() == ["v2"]
    with pytest.raises(ManifestUnknown, match="no tag v1"):
        await node.index.delete_tag("app", "v1")
    await node.index.delete_manifest("app", digest)
    assert await node.find("v2") is None
    with pytest.raises(ManifestUnknown, match="no tag v2"):
        await node.index.get_tag("app", "v2", soon())
    with pytest.raises(ManifestUnknown, match=f"no manifest {digest}"):
        await node.index.delete_manifest("app", digest)
    assert (await node.index.repositories("", None)).names == []


async def test_a_blob_is_deleted_when_no_manifest_needs_it(node: Node) -> None:
    digest = await node.push_image("one", "v1")
    layer = Digest.of(b"layer of one")
    with pytest.raises(Unsupported, match=str(digest)):
        await node.index.delete_blob("app", layer)
    await node.index.delete_manifest("app", digest)
    await node.index.delete_blob("app", layer)
    assert not await node.has(layer)
    with pytest.raises(BlobUnknown):
        await node.index.delete_blob("app", layer)


async def test_mounts_say_where_the_blob_was_looked_for(node: Node) -> None:
    await node.link(LAYER)
    await node.index.mount("new", LAYER, "app")
    await node.index.mount("anonymous", LAYER, None)
    assert await node.has(LAYER, "new")
    assert await node.has(LAYER, "anonymous")
    with pytest.raises(BlobUnknown, match="the repository empty does not have"):
        await node.index.mount("third", LAYER, "empty")
    with pytest.raises(BlobUnknown, match="no repository has"):
        await node.index.mount("third", OTHER, None)


async def test_a_layer_that_is_deleted_between_the_check_and_the_write_is_missed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.link(CONFIG, LAYER)
    resolve = node.index._resolver.resolve

    async def resolve_and_delete(*args: Any, **given: Any) -> Any:
        resolved = await resolve(*args, **given)
        await node.index.delete_blob("app", LAYER)
        return resolved

    monkeypatch.setattr(node.index._resolver, "resolve", resolve_and_delete)
    with pytest.raises(ManifestBlobUnknown) as refused:
        await node.push(image(CONFIG, LAYER), "v1")
    assert refused.value.detail["missing"] == [str(LAYER)]
    assert await node.find("v1") is None


async def test_a_push_that_loses_a_layer_every_time_is_told_to_try_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.link(CONFIG, LAYER)

    def lost(*_args: object, **_given: object) -> None:
        raise writes.Lost([LAYER])

    monkeypatch.setattr(writes, "put_manifest", lost)
    with pytest.raises(Unavailable, match=f"{LAYER} left the repository app"):
        await node.push(image(CONFIG, LAYER), "v1")


async def test_who_relies_on_a_blob_renews_it_when_it_is_old(tmp_path: Path) -> None:
    node = Node(tmp_path, gc=GcConfig(grace=2 * HOUR, interval=0))
    try:
        await node.link(LAYER, OTHER)
        node.ahead = 1.5 * HOUR
        assert await node.has(LAYER, rely=True)
        assert await node.has(OTHER, rely=False)
        node.ahead = 2.5 * HOUR
        report = await node.index.collect(dry_run=False, grace=None)
        assert [(item.kind, item.name) for item in report.items] == [("blob", str(OTHER))]
        assert await node.has(LAYER)
        assert not await node.has(OTHER, rely=True)
    finally:
        await node.stop()


async def test_lookups_answer_in_the_order_of_the_questions(node: Node) -> None:
    digest = await node.push_image("one", "v1")
    layer = Digest.of(b"layer of one")
    manifests, blobs, _ = await node.index.lookup(
        [("app", "no"), ("app", "v1"), ("no", "v1"), ("app", str(digest))],
        [("app", str(OTHER)), ("app", str(layer)), ("app", str(digest))],
        rely=True,
    )
    assert [found and found.digest for found in manifests] == [None, digest, None, digest]
    assert blobs == [False, True, False]


async def test_wanted_is_what_any_repository_has(node: Node) -> None:
    digest = await node.push_image("one", "v1")
    layer = Digest.of(b"layer of one")
    await node.link(OTHER, repository="other")
    names = [str(name) for name in (digest, layer, OTHER, LAYER)]
    assert await node.index.wanted(names) == names[:3]


async def test_a_write_goes_on_when_its_caller_leaves(node: Node) -> None:
    link = asyncio.create_task(node.index.link("app", LAYER))
    await asyncio.sleep(0)
    link.cancel()
    with pytest.raises(asyncio.CancelledError):
        await link
    await node.publisher.stop()
    assert await node.has(LAYER)


async def test_pages_are_clamped(node: Node) -> None:
    await node.push_image("one", "a", "b", "c")
    page = await node.index.tags("app", "", 0)
    assert (page.names, page.more) == (["a"], True)
    assert (await node.index.tags("app", "b", 10**9)).names == ["c"]


async def test_a_pushed_manifest_without_its_body_is_read_from_the_origins(node: Node) -> None:
    await node.link(CONFIG, LAYER)
    digest = node.origins.store(image(CONFIG, LAYER))
    await node.index.put_manifest("app", digest, None, None, tags=["v1"], deadline=soon())
    found = await node.find("v1")
    assert found is not None
    assert found.size == len(node.origins.bodies[digest])
