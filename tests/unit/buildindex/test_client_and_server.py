# SPDX-License-Identifier: Apache-2.0
"""The client and the API of the build-index understand each other, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from shoal.backend.matching import Backends
from shoal.buildindex.api import Api
from shoal.buildindex.client import BuildIndexClient
from shoal.buildindex.collector import Collector
from shoal.buildindex.config import GcConfig, TagTypeConfig
from shoal.buildindex.database import Database
from shoal.buildindex.listing import Listings
from shoal.buildindex.members import Members
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.publishing import Publisher
from shoal.buildindex.resolver import Resolver
from shoal.buildindex.service import BuildIndex
from shoal.buildindex.store import Store
from shoal.buildindex.tag_types import TagTypes
from shoal.model.digest import Digest
from shoal.model.errors import ManifestBlobUnknown, NameUnknown, Unsupported
from shoal.model.manifest import FoundManifest
from shoal.model.media_types import OCI_MANIFEST
from shoal.ring.config import HostsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.server import application
from tests.unit.buildindex.index_node import elsewhere_of
from tests.unit.buildindex.resolver_fakes import CONFIG, FakeOrigins, descriptor, image, index

CONFIG_BLOB, LAYER = Digest.of(b"config"), Digest.of(b"layer")
REPOSITORY = "team/app"


async def nothing_unwritten() -> None:
    """There is no backend."""


@pytest.fixture
def origins() -> FakeOrigins:
    return FakeOrigins()


@pytest.fixture
async def client(origins: FakeOrigins, tmp_path: Path) -> AsyncIterator[BuildIndexClient]:
    http = HttpClient(user_agent="test")
    store = Store(Database(tmp_path))
    neighbours = Neighbours(http, store, [], timeout=1.0, interval=60.0)
    types = TagTypes([TagTypeConfig(pattern="^files/", type="default")])
    gc = GcConfig()
    backends = Backends.open((), {}, http)
    publisher = Publisher(store, neighbours)
    elsewhere = elsewhere_of(store, neighbours, publisher, origins, backends)
    build_index = BuildIndex(
        store,
        neighbours,
        publisher,
        Resolver(origins, Members(store, neighbours, elsewhere), 2, CONFIG, types),
        Collector(store, neighbours, gc, tombstone_ttl=60.0, unwritten=nothing_unwritten),
        elsewhere=elsewhere,
        listings=Listings(store, backends, timeout=1.0),
        gc_grace=gc.grace,
        origins_missing=nothing,
    )
    app = application("build-index", readiness=build_index.readiness, request_timeout=5.0)
    Api(build_index).add_routes(app)
    await build_index.start(1.0)
    async with TestServer(app) as server:
        yield BuildIndexClient(http, HostsConfig(hosts=[f"{server.host}:{server.port}"]))
        await http.close()
    await build_index.stop()


async def nothing() -> list[str]:
    return []


def soon() -> Deadline:
    return Deadline.after(10.0)


async def push(
    client: BuildIndexClient, origins: FakeOrigins, manifest: bytes, *tags: str
) -> Digest:
    digest = origins.put(manifest)
    for blob in (CONFIG_BLOB, LAYER):
        await client.link_blob(REPOSITORY, blob, deadline=soon())
    await client.put_manifest(
        REPOSITORY, digest, manifest, OCI_MANIFEST, tags=tags, deadline=soon()
    )
    return digest


async def test_a_manifest_is_found_by_its_digest_and_by_each_of_its_tags(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    manifest = image(origins)
    digest = await push(client, origins, manifest, "v1", "latest")
    found = FoundManifest(digest, OCI_MANIFEST, len(manifest))
    for reference in (digest, "v1", "latest"):
        assert await client.find_manifest(REPOSITORY, reference, deadline=soon()) == found
        assert await client.find_manifest("team/other", reference, deadline=soon()) is None
    assert await client.get_tag(REPOSITORY, "v1", deadline=soon()) == digest
    assert await client.tags(REPOSITORY, deadline=soon()) == ["latest", "v1"]
    assert await client.repositories(deadline=soon()) == [REPOSITORY]
    with pytest.raises(NameUnknown):
        await client.tags("team/other", deadline=soon())


async def test_names_that_cannot_be_are_not_there_and_spoil_no_other_lookup(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    digest = await push(client, origins, image(origins), "v1")
    found = await asyncio.gather(
        *(
            client.find_manifest(repository, reference, deadline=soon())
            for repository, reference in (
                ("", ""),
                ("UPPER", "v1"),
                (REPOSITORY, "sha256:no"),
                (REPOSITORY, "no\x00tag" * 500),
                (REPOSITORY, "v1"),
            )
        )
    )
    assert [None if one is None else one.digest for one in found] == [None] * 4 + [digest]


async def test_a_blob_belongs_to_the_repositories_that_it_was_linked_or_mounted_to(
    client: BuildIndexClient,
) -> None:
    async def has(repository: str, rely: bool = False) -> bool:
        return await client.has_blob(repository, LAYER, deadline=soon(), rely=rely)

    assert not await has("team/base")
    assert not await client.mount_blob(REPOSITORY, LAYER, None, deadline=soon())
    await client.link_blob("team/base", LAYER, deadline=soon())
    assert await has("team/base")
    assert await has("team/base", rely=True)
    assert not await has(REPOSITORY)
    assert not await client.mount_blob(REPOSITORY, LAYER, "team/other", deadline=soon())
    assert await client.mount_blob(REPOSITORY, LAYER, "team/base", deadline=soon())
    assert await client.mount_blob("team/third", LAYER, None, deadline=soon())
    assert await has(REPOSITORY)
    assert await has("team/third")


async def test_a_manifest_of_strange_blobs_is_refused_until_they_are_mounted(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    manifest = image(origins)
    digest = origins.put(manifest)

    async def put() -> None:
        await client.put_manifest(
            REPOSITORY, digest, manifest, OCI_MANIFEST, tags=["v1"], deadline=soon()
        )

    await client.link_blob("team/base", LAYER, deadline=soon())
    await client.link_blob(REPOSITORY, CONFIG_BLOB, deadline=soon())
    with pytest.raises(ManifestBlobUnknown) as caught:
        await put()
    assert caught.value.detail["missing"] == [str(LAYER)]
    assert await client.find_manifest(REPOSITORY, "v1", deadline=soon()) is None
    assert await client.mount_blob(REPOSITORY, LAYER, "team/base", deadline=soon())
    await put()
    assert await client.get_tag(REPOSITORY, "v1", deadline=soon()) == digest


async def test_a_link_that_comes_while_the_push_waits_saves_it(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    manifest = image(origins)
    origins.hidden[CONFIG_BLOB] = 1
    await client.link_blob(REPOSITORY, CONFIG_BLOB, deadline=soon())
    put = client.put_manifest(
        REPOSITORY, origins.put(manifest), manifest, None, tags=[], deadline=soon()
    )
    await asyncio.gather(put, client.link_blob(REPOSITORY, LAYER, deadline=soon()))


async def test_the_trusted_api_adopts_an_index_with_all_that_it_needs(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    child = image(origins)
    root = index(origins.put(child))
    digest = origins.put(root)
    await client.put_tag(REPOSITORY, "v1", digest, None, None, deadline=soon())
    found = await client.find_manifest(REPOSITORY, Digest.of(child), deadline=soon())
    assert found == FoundManifest(Digest.of(child), OCI_MANIFEST, len(child))
    for blob in (CONFIG_BLOB, LAYER):
        assert await client.has_blob(REPOSITORY, blob, deadline=soon())
    # A second manifest of the same parts may be pushed the strict way.
    await push(client, origins, image(origins), "v2")


async def test_a_tag_of_anything_is_found_without_type_and_size(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    digest = origins.put(b"no manifest at all")
    await client.put_tag("files/tool", "v1", digest, None, None, deadline=soon())
    found = await client.find_manifest("files/tool", "v1", deadline=soon())
    assert found == FoundManifest(digest, "", 0)


async def test_what_is_deleted_is_gone_and_cannot_be_deleted_again(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    digest = await push(client, origins, image(origins), "v1", "v2", "v3")
    with pytest.raises(Unsupported, match=str(digest)):
        await client.delete_blob(REPOSITORY, LAYER, deadline=soon())
    assert await client.delete_tag(REPOSITORY, "v1", deadline=soon())
    assert not await client.delete_tag(REPOSITORY, "v1", deadline=soon())
    assert await client.find_manifest(REPOSITORY, "v2", deadline=soon()) is not None
    assert await client.delete_manifest(REPOSITORY, digest, deadline=soon())
    assert not await client.delete_manifest(REPOSITORY, digest, deadline=soon())
    for reference in (digest, "v2", "v3"):
        assert await client.find_manifest(REPOSITORY, reference, deadline=soon()) is None
    assert await client.delete_blob(REPOSITORY, LAYER, deadline=soon())
    assert not await client.delete_blob(REPOSITORY, LAYER, deadline=soon())
    assert not await client.has_blob(REPOSITORY, LAYER, deadline=soon())


async def test_referrers_are_listed_in_pages_and_by_type(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    subject = Digest.of(b"subject")
    digests = []
    for number in range(5):
        manifest = {
            **json.loads(image(origins)),
            "subject": descriptor(subject, OCI_MANIFEST),
            "artifactType": f"application/type{number % 2}",
            "annotations": {"number": str(number)},
        }
        digests.append(await push(client, origins, json.dumps(manifest).encode()))

    async def listed(artifact_type: str | None, n: int, last: str = "") -> list[Digest]:
        found = await client.referrers(
            REPOSITORY, subject, artifact_type=artifact_type, n=n, last=last, deadline=soon()
        )
        return [referrer.digest for referrer in found]

    everything = sorted(digests)
    assert await listed(None, 100) == everything
    assert await listed(None, 2) == everything[:2]
    assert await listed(None, 100, str(everything[1])) == everything[2:]
    assert await listed("application/type1", 100) == sorted([digests[1], digests[3]])
    assert await listed("application/other", 100) == []


async def test_what_a_repository_needs_is_wanted(
    client: BuildIndexClient, origins: FakeOrigins
) -> None:
    digest = await push(client, origins, image(origins))
    other = Digest.of(b"other")
    wanted = await client.wanted([digest, LAYER, other], deadline=soon())
    assert wanted == {digest, LAYER}
