# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.buildindex.dependencies import DependencyWalk
from shoal.model.digest import Digest
from shoal.model.manifest import InvalidManifest
from shoal.model.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

CONFIG = Digest.of(b"config")
LAYER = Digest.of(b"layer")


def descriptor(digest: Digest, media_type: str = "application/x", **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": 1, **more}


def image(*layers: Digest, media_type: str = OCI_MANIFEST, **more: Any) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(CONFIG),
            "layers": [descriptor(layer) for layer in layers],
            **more,
        }
    ).encode()


def index(*children: tuple[Digest, str], media_type: str = OCI_INDEX) -> bytes:
    manifests = [descriptor(digest, child_type) for digest, child_type in children]
    return json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    ).encode()


def walk_all(root: bytes, *others: bytes, **bounds: Any) -> DependencyWalk:
    bodies = {Digest.of(body): body for body in (root, *others)}
    walk = DependencyWalk(Digest.of(root), **bounds)
    while walk.pending:
        digest = walk.pending[0]
        if digest in bodies:
            walk.feed(digest, bodies[digest])
        else:
            walk.absent(digest)
    return walk


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_image_needs_itself_its_config_and_its_layers(media_type: str) -> None:
    body = image(LAYER, media_type=media_type)
    assert walk_all(body).digests == [Digest.of(body), CONFIG, LAYER]


def test_a_foreign_layer_is_not_needed() -> None:
    foreign = descriptor(Digest.of(b"windows"), urls=["https://example.com/layer"])
    body = image(layers=[descriptor(LAYER), foreign])
    assert walk_all(body).digests == [Digest.of(body), CONFIG, LAYER]


def test_a_subject_is_not_needed() -> None:
    body = image(LAYER, subject=descriptor(Digest.of(b"subject"), OCI_MANIFEST))
    assert walk_all(body).digests == [Digest.of(body), CONFIG, LAYER]


@pytest.mark.parametrize(
    "index_type, image_type", [(OCI_INDEX, OCI_MANIFEST), (DOCKER_LIST, DOCKER_MANIFEST)]
)
def test_an_index_needs_its_children_and_all_that_they_need(
    index_type: str, image_type: str
) -> None:
    amd, arm = (
        image(LAYER, media_type=image_type),
        image(Digest.of(b"arm"), media_type=image_type),
    )
    root = index((Digest.of(amd), image_type), (Digest.of(arm), image_type), media_type=index_type)
    assert set(walk_all(root, amd, arm).digests) == {
        *map(Digest.of, (root, amd, arm, b"arm")),
        CONFIG,
        LAYER,
    }


def test_indexes_inside_indexes_are_walked() -> None:
    leaf = image(LAYER)
    inner = index((Digest.of(leaf), OCI_MANIFEST))
    root = index((Digest.of(inner), OCI_INDEX))
    assert LAYER in walk_all(root, inner, leaf).digests


def test_content_of_an_index_that_is_no_manifest_is_needed_and_not_read() -> None:
    root = index((LAYER, "application/vnd.buildkit.cacheconfig.v0"))
    walk = DependencyWalk(Digest.of(root))
    walk.feed(Digest.of(root), root)
    assert walk.pending == []
    assert walk.digests == [Digest.of(root), LAYER]


def test_an_absent_child_stays_a_dependency() -> None:
    child = Digest.of(b"elsewhere")
    root = index((child, OCI_MANIFEST))
    assert walk_all(root).digests == [Digest.of(root), child]


def test_children_of_a_sparse_index_may_be_dropped_and_what_images_name_may_not() -> None:
    here, elsewhere = image(LAYER), image(Digest.of(b"far"))
    cache = Digest.of(b"build cache")
    root = index(
        (Digest.of(here), OCI_MANIFEST),
        (Digest.of(elsewhere), OCI_MANIFEST),
        (cache, "application/vnd.buildkit.cacheconfig.v0"),
    )
    walk = DependencyWalk(Digest.of(root), children="present")
    walk.feed(Digest.of(root), root)
    assert walk.optional == {Digest.of(here), Digest.of(elsewhere), cache}
    walk.drop(Digest.of(elsewhere))
    walk.drop(cache)
    walk.feed(Digest.of(here), here)
    assert walk.pending == []
    assert walk.digests == [Digest.of(root), Digest.of(here), CONFIG, LAYER]


def test_what_an_image_names_is_needed_even_if_a_sparse_index_lists_it_too() -> None:
    leaf = image(LAYER)
    root = index((LAYER, "application/x"), (Digest.of(leaf), OCI_MANIFEST))
    walk = DependencyWalk(Digest.of(root), children="present")
    walk.feed(Digest.of(root), root)
    walk.feed(Digest.of(leaf), leaf)
    assert walk.optional == {Digest.of(leaf)}


def test_an_index_whose_children_are_ignored_needs_only_itself() -> None:
    root = index((Digest.of(b"1"), OCI_MANIFEST), (LAYER, "application/x"))
    walk = DependencyWalk(Digest.of(root), children="ignore")
    walk.feed(Digest.of(root), root)
    assert (walk.pending, walk.digests) == ([], [Digest.of(root)])


def test_a_child_that_is_listed_often_is_read_once() -> None:
    leaf = image(LAYER)
    child = (Digest.of(leaf), OCI_MANIFEST)
    root = index(child, child)
    walk = DependencyWalk(Digest.of(root))
    walk.feed(Digest.of(root), root)
    assert walk.pending == [Digest.of(leaf)]


def test_a_child_that_is_not_what_the_index_calls_it_is_refused() -> None:
    leaf = image(LAYER, media_type=DOCKER_MANIFEST)
    with pytest.raises(InvalidManifest, match=f"child manifest {Digest.of(leaf)}"):
        walk_all(index((Digest.of(leaf), OCI_MANIFEST)), leaf)


def test_a_child_under_two_types_is_refused() -> None:
    child = Digest.of(b"x")
    with pytest.raises(InvalidManifest, match="is listed as"):
        walk_all(index((child, OCI_MANIFEST), (child, OCI_INDEX)))


def test_the_number_of_dependencies_is_bounded() -> None:
    layers = [Digest.of(bytes([number])) for number in range(10)]
    assert len(walk_all(image(*layers), max_count=12).digests) == 12
    with pytest.raises(InvalidManifest, match="more than 11 blobs"):
        walk_all(image(*layers), max_count=11)


def test_the_depth_is_bounded() -> None:
    bodies = [image(LAYER)]
    for _ in range(3):
        child_type = OCI_MANIFEST if len(bodies) == 1 else OCI_INDEX
        bodies.insert(0, index((Digest.of(bodies[0]), child_type)))
    assert LAYER in walk_all(*bodies, max_depth=4).digests
    with pytest.raises(InvalidManifest, match="more than 3 deep"):
        walk_all(*bodies, max_depth=3)


def test_the_bytes_of_all_manifests_together_are_bounded() -> None:
    leaves = [image(LAYER, annotations={"fill": str(number) * 1000}) for number in range(3)]
    root = index(*((Digest.of(leaf), OCI_MANIFEST) for leaf in leaves))
    size = len(root) + sum(map(len, leaves))
    walk = walk_all(root, *leaves, max_bytes=size)
    assert {digest: read.size for digest, read in walk.read.items()} == {
        Digest.of(body): len(body) for body in (root, *leaves)
    }
    with pytest.raises(InvalidManifest, match=f"more than {size - 1} bytes"):
        walk_all(root, *leaves, max_bytes=size - 1)


def test_blobs_and_children_are_told_apart() -> None:
    leaf = image(LAYER)
    cache = Digest.of(b"build cache")
    root = index(
        (Digest.of(leaf), OCI_MANIFEST), (cache, "application/vnd.buildkit.cacheconfig.v0")
    )
    walk = walk_all(root, leaf)
    assert walk.children == {Digest.of(leaf)}
    assert walk.blobs == {cache, CONFIG, LAYER}


def test_a_document_that_is_no_manifest_is_refused() -> None:
    with pytest.raises(InvalidManifest):
        walk_all(b"{}")


@given(st.data())
def test_every_digest_of_a_random_image_tree_is_found_once(data: st.DataObject) -> None:
    blobs = [Digest.of(bytes([number])) for number in range(12)]
    manifests: list[tuple[bytes, str]] = [
        (image(*data.draw(st.lists(st.sampled_from(blobs), max_size=6))), OCI_MANIFEST)
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    for _ in range(data.draw(st.integers(0, 4))):
        chosen = data.draw(st.lists(st.sampled_from(manifests), min_size=1, max_size=4))
        manifests.append((index(*((Digest.of(body), kind) for body, kind in chosen)), OCI_INDEX))
    walk = walk_all(manifests[-1][0], *(body for body, _ in manifests))
    assert len(set(walk.digests)) == len(walk.digests)
    assert set(walk.digests) == reachable(manifests[-1][0], dict(by_digest(manifests)))


def by_digest(manifests: list[tuple[bytes, str]]) -> list[tuple[Digest, bytes]]:
    return [(Digest.of(body), body) for body, _ in manifests]


def reachable(root: bytes, bodies: dict[Digest, bytes]) -> set[Digest]:
    document = json.loads(root)
    found = {Digest.of(root)}
    for entry in [*document.get("layers", []), *document.get("manifests", [])]:
        found.add(Digest.parse(entry["digest"]))
    if "config" in document:
        found.add(CONFIG)
    for digest in list(found):
        if digest in bodies and bodies[digest] != root:
            found |= reachable(bodies[digest], bodies)
    return found
