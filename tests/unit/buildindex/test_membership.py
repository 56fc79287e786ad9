# SPDX-License-Identifier: Apache-2.0
"""What a manifest references must belong to its repository."""

from __future__ import annotations

import json

import pytest

from shoal.buildindex.config import TagTypeConfig
from shoal.buildindex.dependencies import ReadManifest
from shoal.buildindex.resolver import Resolved
from shoal.model.digest import Digest
from shoal.model.errors import ManifestBlobUnknown, ManifestInvalid, Unavailable
from shoal.model.manifest import IndexChildren, parse_manifest
from shoal.model.media_types import OCI_INDEX, OCI_MANIFEST
from shoal.web.failures import Unreachable
from tests.unit.buildindex.resolver_fakes import (
    CONFIG,
    FakeMembership,
    FakeOrigins,
    descriptor,
    image,
    index,
    resolve,
)

CONFIG_BLOB, LAYER = Digest.of(b"config"), Digest.of(b"layer")


@pytest.fixture
def origins() -> FakeOrigins:
    return FakeOrigins()


@pytest.fixture
def membership() -> FakeMembership:
    return FakeMembership()


async def test_blobs_need_links_and_children_need_records_of_the_repository(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    child = image(origins)
    root = index(origins.put(child))
    origins.put(root)
    await resolve(origins, root, membership=membership)
    assert membership.questions == [
        ("team/app", set(), {Digest.of(child)}),
        ("team/app", {CONFIG_BLOB, LAYER}, set()),
    ]


@pytest.mark.parametrize("stranger", [b"config", b"layer"])
async def test_a_blob_of_another_repository_is_missing_and_its_origins_are_not_asked(
    origins: FakeOrigins, membership: FakeMembership, stranger: bytes
) -> None:
    manifest = image(origins)
    origins.put(manifest)
    membership.no_blobs = {Digest.of(stranger)}
    with pytest.raises(ManifestBlobUnknown, match="repository team/app and all origins") as caught:
        await resolve(origins, manifest, membership=membership)
    assert caught.value.detail == {"missing": [str(Digest.of(stranger))], "attempts": 4}
    assert all(Digest.of(stranger) not in batch for batch in origins.batches)


async def test_a_blob_of_another_repository_and_one_that_nobody_has_look_the_same(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    def refusal(error: ManifestBlobUnknown) -> tuple[str, object]:
        return error.message.replace(str(LAYER), "D"), error.detail["attempts"]

    manifest = image(origins)
    origins.put(manifest)
    membership.no_blobs = {LAYER}
    with pytest.raises(ManifestBlobUnknown) as elsewhere:
        await resolve(origins, manifest, membership=membership)
    del origins.blobs[LAYER]
    with pytest.raises(ManifestBlobUnknown) as nowhere:
        await resolve(origins, manifest, membership=membership)
    assert refusal(elsewhere.value) == refusal(nowhere.value)


async def test_a_link_that_arrives_within_the_retries_saves_the_push(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    manifest = image(origins)
    origins.put(manifest)
    membership.late = {LAYER: 3}
    found = await resolve(origins, manifest, membership=membership)
    assert LAYER in found.digests
    # What was found in the repository is not asked for again.
    assert [blobs for _, blobs, _ in membership.questions] == [
        {CONFIG_BLOB, LAYER},
        {LAYER},
        {LAYER},
        {LAYER},
    ]


async def test_a_record_of_a_child_that_arrives_within_the_retries_saves_the_push(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    child = image(origins)
    root = index(origins.put(child))
    origins.put(root)
    membership.late = {Digest.of(child): 2}
    found = await resolve(origins, root, membership=membership)
    assert list(found.manifests) == [Digest.of(child)]


async def test_all_that_is_missing_is_named_whatever_it_lacks(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    whole, broken, foreign = (image(origins, name) for name in (b"1", b"2", b"3"))
    root = index(*(origins.put(child) for child in (whole, broken, foreign)))
    origins.put(root)
    del origins.blobs[Digest.of(b"layer2")]
    membership.no_blobs = {Digest.of(b"config1")}
    membership.no_manifests = {Digest.of(foreign)}
    with pytest.raises(ManifestBlobUnknown) as caught:
        await resolve(origins, root, membership=membership)
    assert caught.value.detail["missing"] == sorted(
        map(str, (Digest.of(b"layer2"), Digest.of(b"config1"), Digest.of(foreign)))
    )


async def test_manifests_of_other_repositories_are_not_read_to_complete_an_error(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    """Or a push that names a stranger's manifest would tell which layers that has."""
    secret = image(origins, b"secret")
    inner = index(origins.put(secret))
    broken = Digest.of(b"nowhere")
    root = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [descriptor(origins.put(inner), OCI_INDEX), descriptor(broken)],
        }
    ).encode()
    origins.put(root)
    membership.no_manifests = {Digest.of(secret)}
    membership.no_blobs = {Digest.of(b"layersecret"), Digest.of(b"configsecret")}
    with pytest.raises(ManifestBlobUnknown) as caught:
        await resolve(origins, root, membership=membership)
    assert caught.value.detail["missing"] == sorted(map(str, (broken, Digest.of(secret))))
    assert Digest.of(secret) not in origins.reads


async def test_what_is_both_a_child_and_a_layer_needs_a_record_and_a_link(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    child = image(origins, b"1")
    carrier = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(origins.put(b"config")),
            "layers": [descriptor(origins.put(child))],
        }
    ).encode()
    root = index(Digest.of(child), origins.put(carrier))
    origins.put(root)
    membership.no_blobs = {Digest.of(child)}
    with pytest.raises(ManifestBlobUnknown, match=str(Digest.of(child))):
        await resolve(origins, root, membership=membership)
    membership.no_blobs = set()
    found = await resolve(origins, root, membership=membership)
    assert Digest.of(child) in found.blobs
    assert Digest.of(child) in found.manifests


async def test_foreign_layers_and_subjects_are_exempt(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    foreign = {**descriptor(Digest.of(b"windows")), "urls": ["https://example.com/layer"]}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(origins.put(b"config")),
            "layers": [foreign, descriptor(origins.put(b"layer"))],
            "subject": descriptor(Digest.of(b"subject"), OCI_MANIFEST),
        }
    ).encode()
    origins.put(manifest)
    membership.no_blobs = {Digest.of(b"windows"), Digest.of(b"subject")}
    membership.no_manifests = {Digest.of(b"subject")}
    found = await resolve(origins, manifest, membership=membership)
    assert found.blobs == (CONFIG_BLOB, LAYER)


async def test_other_content_of_an_index_needs_a_link(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    cache = origins.put(b"build cache")
    root = json.dumps({"schemaVersion": 2, "manifests": [descriptor(cache)]}).encode()
    origins.put(root)
    membership.no_manifests = {cache}
    assert (await resolve(origins, root, membership=membership)).blobs == (cache,)
    membership.no_blobs = {cache}
    with pytest.raises(ManifestBlobUnknown, match=str(cache)):
        await resolve(origins, root, membership=membership)


# -- sparse indexes -------------------------------------------------------------------------------


async def test_a_child_of_a_sparse_index_is_here_when_it_is_in_the_repository(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    here, elsewhere = image(origins, b"1"), image(origins, b"2")
    root = index(origins.put(here), origins.put(elsewhere))
    origins.put(root)
    membership.no_manifests = {Digest.of(elsewhere)}
    found = await resolve(origins, root, membership=membership, children="present")
    assert list(found.manifests) == [Digest.of(here)]
    assert Digest.of(b"layer2") not in found.digests
    assert origins.reads == [Digest.of(here)]
    with pytest.raises(ManifestBlobUnknown, match=str(Digest.of(elsewhere))):
        await resolve(origins, root, membership=membership, children="required")


async def test_whether_a_stranger_is_on_the_origins_need_not_be_known(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    elsewhere = image(origins)
    root = index(origins.put(elsewhere, {"o3"}))
    origins.put(root)
    origins.down = {"o3"}
    membership.no_manifests = {Digest.of(elsewhere)}
    found = await resolve(origins, root, membership=membership, children="present")
    assert found.digests == (Digest.of(root),)


async def test_a_child_of_a_sparse_index_that_is_in_the_repository_must_be_complete(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    root = index(origins.put(image(origins)))
    origins.put(root)
    membership.no_blobs = {LAYER}
    with pytest.raises(ManifestBlobUnknown, match=str(LAYER)):
        await resolve(origins, root, membership=membership, children="present")


async def test_ignored_children_need_not_be_in_the_repository(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    child = Digest.of(b"anywhere")
    root = index(child)
    origins.put(root)
    membership.no_manifests = {child}
    found = await resolve(origins, root, membership=membership, children="ignore")
    assert found.digests == (Digest.of(root),)
    assert membership.questions == []


# -- adoption -------------------------------------------------------------------------------------


@pytest.mark.parametrize("children", ["required", "present"])
async def test_adopting_demands_no_membership_and_says_all_that_there_is_to_adopt(
    origins: FakeOrigins, membership: FakeMembership, children: IndexChildren
) -> None:
    child = image(origins)
    root = index(origins.put(child))
    origins.put(root)
    membership.no_blobs, membership.no_manifests = {CONFIG_BLOB, LAYER}, {Digest.of(child)}
    found = await resolve(origins, root, membership=membership, adopt=True, children=children)
    assert found == Resolved(
        root=parse_manifest(root),
        size=len(root),
        digests=(Digest.of(root), Digest.of(child), CONFIG_BLOB, LAYER),
        blobs=(CONFIG_BLOB, LAYER),
        manifests={Digest.of(child): ReadManifest(parse_manifest(child), len(child))},
    )
    assert membership.questions == []


async def test_adopting_still_needs_what_is_adopted(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    manifest = image(origins)
    origins.put(manifest)
    del origins.blobs[LAYER]
    with pytest.raises(ManifestBlobUnknown, match=r"\(all origins were asked"):
        await resolve(origins, manifest, membership=membership, adopt=True)


async def test_a_tag_of_type_default_references_nothing(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    digest = origins.put(b"anything")
    types = [TagTypeConfig(pattern="^team/", type="default")]
    found = await resolve(origins, b"anything", membership=membership, tag_types=types)
    assert found == Resolved(None, len(b"anything"), (digest,))
    assert membership.questions == []


# -- failures, bounds -----------------------------------------------------------------------------


async def test_a_membership_that_cannot_be_told_is_unavailable_and_not_unknown(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    manifest = image(origins)
    origins.put(manifest)
    membership.failure = Unreachable("GET", "http://n2/", "connection refused")
    with pytest.raises(Unavailable, match="connection refused") as caught:
        await resolve(origins, manifest, membership=membership)
    assert caught.value.detail["attempts"] == len(membership.questions) == 4
    assert origins.batches == []


async def test_what_is_certainly_not_in_the_repository_is_missing_even_if_origins_are_silent(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    manifest = image(origins)
    origins.put(manifest)
    origins.down = {"o1", "o2", "o3"}
    membership.no_blobs = {LAYER}
    with pytest.raises(ManifestBlobUnknown) as caught:
        await resolve(origins, manifest, membership=membership)
    assert caught.value.detail["missing"] == [str(LAYER)]


async def test_an_index_bomb_is_refused_before_it_is_read(
    origins: FakeOrigins, membership: FakeMembership
) -> None:
    """Each level lists its lower one many times: what is listed grows, what is read does not."""
    level = image(origins)
    media_type = OCI_MANIFEST
    for _ in range(CONFIG.max_depth):
        entries = [descriptor(origins.put(level), media_type)] * 100
        level = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        media_type = OCI_INDEX
    origins.put(level)
    with pytest.raises(ManifestInvalid, match=f"more than {CONFIG.max_depth} deep"):
        await resolve(origins, level, membership=membership)
    assert len(origins.reads) == CONFIG.max_depth - 1
    assert len(set(origins.reads)) == len(origins.reads)
