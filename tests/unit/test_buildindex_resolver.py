# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Collection, Iterable

import pytest

from shoal.buildindex.resolver import Resolver
from shoal.model.digest import Digest
from shoal.model.errors import DigestInvalid, ManifestBlobUnknown, ManifestInvalid, Unavailable
from shoal.model.manifest import MAX_MANIFEST_BYTES
from shoal.model.media_types import OCI_INDEX, OCI_MANIFEST
from shoal.origin.client import Presence
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Unreachable

HOSTS = ("o1", "o2", "o3")
DOWN = Unreachable("GET", "http://o3/", "connection refused")


class FakeOrigins:
    """Blobs in memory, on hosts that can be down."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, tuple[bytes, set[str]]] = {}
        self.down: set[str] = set()
        self.repaired: list[Digest] = []
        self.repair_fails = False
        self.batches: list[list[Digest]] = []

    def put(self, content: bytes, hosts: Collection[str] = HOSTS) -> Digest:
        self.blobs[Digest.of(content)] = (content, set(hosts))
        return Digest.of(content)

    async def read(self, digest: Digest, *, deadline: Deadline, limit: int) -> bytes:
        assert not deadline.expired
        content, hosts = self.blobs.get(digest, (b"", set()))
        if hosts - self.down:
            assert len(content) <= limit
            return content
        raise DOWN if self.down else NotFound("GET", f"http://o1/{digest}", "not there")

    async def stat_many(self, digests: Iterable[Digest], *, deadline: Deadline) -> Presence:
        assert not deadline.expired
        wanted = list(digests)
        self.batches.append(wanted)
        copies = {
            digest: frozenset(hosts)
            for digest in wanted
            if (hosts := self.blobs.get(digest, (b"", set[str]()))[1] - self.down)
        }
        sizes = {digest: len(self.blobs[digest][0]) for digest in copies}
        unasked: dict[str, CallFailed] = dict.fromkeys(self.down, DOWN)
        return Presence(sizes, copies, unasked)

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int:
        assert holders
        assert not deadline.expired
        self.repaired.append(digest)
        if self.repair_fails:
            raise DOWN
        self.blobs[digest][1].update(set(HOSTS) - self.down)
        return len(self.blobs[digest][1])


@pytest.fixture
def origins() -> FakeOrigins:
    return FakeOrigins()


def descriptor(digest: Digest, media_type: str = "application/x") -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": 1}


def image(origins: FakeOrigins, name: bytes = b"", hosts: Collection[str] = HOSTS) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(origins.put(b"config" + name, hosts)),
            "layers": [descriptor(origins.put(b"layer" + name, hosts))],
        }
    ).encode()


def index(*children: Digest) -> bytes:
    manifests = [descriptor(child, OCI_MANIFEST) for child in children]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()


async def resolve(
    origins: FakeOrigins,
    manifest: bytes,
    *,
    body: bool = True,
    content_type: str | None = None,
) -> list[Digest]:
    return await Resolver(origins, write_quorum=2).resolve(
        Digest.of(manifest),
        manifest if body else None,
        content_type,
        deadline=Deadline.after(5.0),
    )


@pytest.mark.parametrize("body", [True, False])
async def test_an_image_whose_blobs_are_there_is_accepted(origins: FakeOrigins, body: bool) -> None:
    manifest = image(origins)
    origins.put(manifest)
    found = await resolve(origins, manifest, body=body)
    assert found == [Digest.of(manifest), Digest.of(b"config"), Digest.of(b"layer")]
    assert origins.batches == [found]
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
    assert caught.value.detail == {"missing": missing}
    assert caught.value.status == 404


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
    assert caught.value.detail == {"undecided": [str(Digest.of(b"layer"))]}


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
    assert len(await resolve(origins, manifest)) == 3


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
    with pytest.raises(Unavailable, match="write quorum"):
        await resolve(origins, manifest)


async def test_bytes_that_do_not_match_the_digest_are_refused(origins: FakeOrigins) -> None:
    with pytest.raises(DigestInvalid):
        await Resolver(origins, 2).resolve(
            Digest.of(b"other"), image(origins), None, deadline=Deadline.after(5.0)
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


async def test_a_large_index_is_resolved_with_one_existence_check(origins: FakeOrigins) -> None:
    children = [image(origins, b"%d" % number) for number in range(100)]
    root = index(*(origins.put(child) for child in children))
    origins.put(root)
    assert len(await resolve(origins, root)) == 301
    assert len(origins.batches) == 1
