# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from shoal.buildindex.config import ResolverConfig, TagTypeConfig
from shoal.buildindex.resolver import Candidate, Resolved, Resolver
from shoal.buildindex.tag_types import TagTypes
from shoal.model.digest import Digest
from shoal.model.errors import DigestInvalid, ManifestBlobUnknown, ManifestInvalid, Unavailable
from shoal.model.manifest import MAX_MANIFEST_BYTES, parse_manifest
from shoal.model.media_types import OCI_INDEX
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.failures import Rejected
from tests.unit.buildindex.resolver_fakes import (
    CONFIG,
    FakeMembership,
    FakeOrigins,
    image,
    index,
    resolve,
)


@pytest.fixture
def origins() -> FakeOrigins:
    return FakeOrigins()


@pytest.mark.parametrize("body", [True, False])
async def test_an_image_whose_blobs_are_there_is_accepted(origins: FakeOrigins, body: bool) -> None:
    manifest = image(origins)
    origins.put(manifest)
    found = await resolve(origins, manifest, body=body)
    assert found.digests == (Digest.of(manifest), Digest.of(b"config"), Digest.of(b"layer"))
    assert found.blobs == (Digest.of(b"config"), Digest.of(b"layer"))
    assert (found.root, found.size) == (parse_manifest(manifest), len(manifest))
    assert found.manifests == {}
    assert origins.batches == [list(found.digests)]
    assert origins.kept == set(found.digests)
    assert origins.repaired == []


async def test_every_missing_digest_is_named(origins: FakeOrigins) -> None:
    present, absent = image(origins, b"1"), image(origins, b"2")
    origins.put(present)
    root = index(Digest.of(present), Digest.of(absent))
    origins.put(root)
    del origins.blobs[Digest.of(b"layer1")]
    with pytest.raises(ManifestBlobUnknown) as caught:
        await resolve(origins, root)
    missing = sorted(map(str, (Digest.of(absent), Digest.of(b"layer1"))))
    assert caught.value.detail == {"missing": missing, "attempts": 4}
    assert caught.value.status == 404
    assert "after 4 attempts in 0.0 s" in caught.value.message


async def test_what_only_the_backend_has_is_safe_there(origins: FakeOrigins) -> None:
    manifest = image(origins)
    origins.put(manifest)
    layer = Digest.of(b"layer")
    del origins.blobs[layer]
    origins.backed[layer] = 5
    found = await resolve(origins, manifest, has_backend=True)
    assert layer in found.blobs
    with pytest.raises(ManifestBlobUnknown, match=str(layer)):
        await resolve(origins, manifest)


async def test_a_manifest_that_is_not_on_the_origins_is_missing_itself(
    origins: FakeOrigins,
) -> None:
    manifest = image(origins)
    for body in (True, False):
        with pytest.raises(ManifestBlobUnknown, match=str(Digest.of(manifest))):
            await resolve(origins, manifest, body=body)


async def test_what_cannot_be_decided_is_unavailable_and_not_unknown(
    origins: FakeOrigins,
) -> None:
    manifest = image(origins)
    origins.put(manifest)
    origins.blobs[Digest.of(b"layer")][1].clear()
    origins.blobs[Digest.of(b"layer")][1].add("o3")
    origins.down = {"o3"}
    with pytest.raises(Unavailable, match="o3: connection refused") as caught:
        await resolve(origins, manifest)
    assert caught.value.detail == {"undecided": [str(Digest.of(b"layer"))], "attempts": 4}


async def test_a_child_that_cannot_be_read_is_unavailable(origins: FakeOrigins) -> None:
    child = image(origins)
    origins.put(child, {"o3"})
    root = index(Digest.of(child))
    origins.put(root)
    origins.down = {"o3"}
    with pytest.raises(Unavailable, match=str(Digest.of(child))):
        await resolve(origins, root)


async def test_one_origin_that_is_down_does_not_stop_a_push(origins: FakeOrigins) -> None:
    manifest = image(origins)
    origins.put(manifest)
    origins.down = {"o3"}
    assert len((await resolve(origins, manifest)).digests) == 3


async def test_under_replicated_blobs_are_brought_to_the_write_quorum(
    origins: FakeOrigins,
) -> None:
    manifest = image(origins, hosts={"o1"})
    origins.put(manifest)
    await resolve(origins, manifest)
    assert set(origins.repaired) == {Digest.of(b"config"), Digest.of(b"layer")}


async def test_blobs_that_cannot_be_brought_to_the_write_quorum_refuse_the_tag(
    origins: FakeOrigins,
) -> None:
    manifest = image(origins, hosts={"o1"})
    origins.put(manifest)
    origins.repair_fails = True
    with pytest.raises(Unavailable, match="write quorum") as refused:
        await resolve(origins, manifest)
    assert int(refused.value.headers["Retry-After"]) >= 1


async def test_bytes_that_do_not_match_the_digest_are_refused(origins: FakeOrigins) -> None:
    with pytest.raises(DigestInvalid):
        await Resolver(origins, FakeMembership(), 2).resolve(
            Candidate(
                name="team/app:v1",
                repository="team/app",
                digest=Digest.of(b"other"),
                body=image(origins),
            ),
            deadline=Deadline.after(5.0),
        )


@pytest.mark.parametrize("manifest", [b"{}", b"not json", b"[" * 200_000])
async def test_a_malformed_manifest_is_refused(origins: FakeOrigins, manifest: bytes) -> None:
    origins.put(manifest)
    for body in (True, False):
        with pytest.raises(ManifestInvalid):
            await resolve(origins, manifest, body=body)


async def test_a_content_type_that_contradicts_the_manifest_is_refused(
    origins: FakeOrigins,
) -> None:
    manifest = image(origins)
    origins.put(manifest)
    with pytest.raises(ManifestInvalid, match="Content-Type"):
        await resolve(origins, manifest, content_type=OCI_INDEX)


async def test_a_manifest_above_the_limit_is_refused(origins: FakeOrigins) -> None:
    with pytest.raises(ManifestInvalid, match="at most"):
        await resolve(origins, b" " * (MAX_MANIFEST_BYTES + 1))


async def test_a_large_index_is_resolved_with_one_existence_check_per_level(
    origins: FakeOrigins,
) -> None:
    children = [image(origins, b"%d" % number) for number in range(100)]
    root = index(*(origins.put(child) for child in children))
    origins.put(root)
    assert len((await resolve(origins, root)).digests) == 301
    assert [len(batch) for batch in origins.batches] == [101, 200]
    assert len(origins.reads) == 100


# -- what is late, and what never comes ---------------------------------------------------------


async def test_a_manifest_that_appears_within_the_retries_saves_the_push(
    origins: FakeOrigins,
) -> None:
    """Open end 2 of the old fix: the same question again finds what was on its way."""
    manifest = image(origins)
    origins.hidden[origins.put(manifest)] = 2
    saved = counted("shoal_pushes_saved_by_retry_total")
    after_retry = counted("shoal_manifest_downloads_total", outcome="after_retry")
    assert len((await resolve(origins, manifest, body=False)).digests) == 3
    assert len(origins.reads) == 3
    assert counted("shoal_pushes_saved_by_retry_total") == saved + 1
    assert counted("shoal_manifest_downloads_total", outcome="after_retry") == after_retry + 1


async def test_a_dependency_that_appears_within_the_retries_saves_the_push(
    origins: FakeOrigins,
) -> None:
    """Open end: the checks of the other dependencies were not retried."""
    manifest = image(origins)
    origins.put(manifest)
    origins.hidden[Digest.of(b"layer")] = 3
    assert len((await resolve(origins, manifest)).digests) == 3
    # What was found is not asked for again.
    assert [len(batch) for batch in origins.batches] == [3, 1, 1, 1]


async def test_what_needs_no_retry_does_not_count_as_saved(origins: FakeOrigins) -> None:
    manifest = image(origins)
    origins.put(manifest)
    saved = counted("shoal_pushes_saved_by_retry_total")
    await resolve(origins, manifest, body=False)
    assert counted("shoal_pushes_saved_by_retry_total") == saved


@pytest.mark.parametrize("body", [True, False])
async def test_a_refusal_by_all_origins_takes_exactly_one_attempt(
    origins: FakeOrigins, body: bool
) -> None:
    origins.refusal = Rejected("GET", "http://o1/", "who are you?", status=401)
    permanent = counted("shoal_manifest_downloads_total", outcome="permanent")
    with pytest.raises(Rejected) as caught:
        await resolve(origins, image(origins), body=body)
    assert caught.value.status == 401
    assert len(origins.reads) + len(origins.batches) == 1
    if not body:
        assert counted("shoal_manifest_downloads_total", outcome="permanent") == permanent + 1


async def test_a_malformed_manifest_is_not_read_again(origins: FakeOrigins) -> None:
    digest = origins.put(b"{}")
    with pytest.raises(ManifestInvalid):
        await resolve(origins, b"{}", body=False)
    assert origins.reads == [digest]


async def test_retries_end_before_the_callers_deadline(origins: FakeOrigins) -> None:
    """Open end: the caller could give up before the retries ended."""
    slow = RetryPolicy(initial=0.2, factor=1, jitter=0, attempts=1000)
    config = ResolverConfig(manifest=slow, existence=slow)
    manifest = image(origins)
    deadline = Deadline.after(1.0)
    with pytest.raises(ManifestBlobUnknown) as caught:
        await resolve(origins, manifest, body=False, config=config, within=1.0)
    assert not deadline.expired
    assert 2 <= len(origins.reads) <= 5
    assert caught.value.detail["attempts"] == len(origins.reads)


async def test_an_error_keeps_its_causes(origins: FakeOrigins) -> None:
    manifest = image(origins)
    with pytest.raises(ManifestBlobUnknown) as caught:
        await resolve(origins, manifest, body=False)
    chain: list[BaseException] = [caught.value]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    assert [type(error).__name__ for error in chain] == [
        "ManifestBlobUnknown",
        "RetriesExhausted",
        "NotFound",
    ]


# -- children of an index -----------------------------------------------------------------------


async def test_a_sparse_index_needs_only_the_children_that_are_here(origins: FakeOrigins) -> None:
    here, elsewhere = image(origins, b"1"), image(origins, b"2")
    origins.put(here)
    root = index(Digest.of(here), Digest.of(elsewhere))
    origins.put(root)
    with pytest.raises(ManifestBlobUnknown, match=str(Digest.of(elsewhere))):
        await resolve(origins, root)
    found = await resolve(origins, root, children="present")
    assert set(found.digests) == {
        Digest.of(root),
        Digest.of(here),
        Digest.of(b"config1"),
        Digest.of(b"layer1"),
    }


async def test_a_child_of_a_sparse_index_that_is_here_must_be_complete(
    origins: FakeOrigins,
) -> None:
    child = image(origins)
    origins.put(child)
    del origins.blobs[Digest.of(b"layer")]
    root = index(Digest.of(child))
    origins.put(root)
    with pytest.raises(ManifestBlobUnknown, match=str(Digest.of(b"layer"))):
        await resolve(origins, root, children="present")


async def test_whether_a_child_is_here_is_not_guessed(origins: FakeOrigins) -> None:
    child = image(origins)
    origins.put(child, {"o3"})
    root = index(Digest.of(child))
    origins.put(root)
    origins.down = {"o3"}
    with pytest.raises(Unavailable, match=str(Digest.of(child))):
        await resolve(origins, root, children="present")


async def test_children_can_be_ignored_by_request_or_by_config(origins: FakeOrigins) -> None:
    root = index(Digest.of(b"anywhere"))
    origins.put(root)
    assert (await resolve(origins, root, children="ignore")).digests == (Digest.of(root),)
    ignoring = CONFIG.model_copy(update={"index_children": "ignore"})
    assert (await resolve(origins, root, config=ignoring)).digests == (Digest.of(root),)
    with pytest.raises(ManifestBlobUnknown):
        await resolve(origins, root, config=ignoring, children="required")


async def test_the_bounds_of_the_config_hold(origins: FakeOrigins) -> None:
    child = image(origins)
    root = index(origins.put(child))
    origins.put(root)
    with pytest.raises(ManifestInvalid, match="more than 3 blobs"):
        await resolve(origins, root, config=CONFIG.model_copy(update={"max_count": 3}))
    with pytest.raises(ManifestInvalid, match="more than 1 deep"):
        await resolve(origins, root, config=CONFIG.model_copy(update={"max_depth": 1}))


# -- tag types ------------------------------------------------------------------------------------


async def test_a_tag_of_type_default_needs_only_its_digest(origins: FakeOrigins) -> None:
    anything = b"no manifest at all"
    types = [TagTypeConfig(pattern="^team/", type="default")]
    with pytest.raises(ManifestBlobUnknown):
        await resolve(origins, anything, body=False, tag_types=types)
    digest = origins.put(anything)
    for body in (True, False):
        found = await resolve(origins, anything, body=body, tag_types=types)
        assert found == Resolved(None, len(anything), (digest,))
    with pytest.raises(ManifestInvalid):
        await resolve(origins, anything)


def test_the_first_pattern_decides_and_no_match_is_docker() -> None:
    types = TagTypes(
        [
            TagTypeConfig(pattern=r"app:raw$", type="default"),
            TagTypeConfig(pattern=r"app", type="docker"),
            TagTypeConfig(pattern=r"^files/", type="default"),
        ]
    )
    assert types.of("team/app:raw") == "default"
    assert types.of("files/app:v1") == "docker"
    assert types.of("files/x:v1") == "default"
    assert types.of("other/files/x:v1") == "docker"


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0
