# SPDX-License-Identifier: Apache-2.0
"""Two build-indexes over three origins: pushes, lists, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from shoal.buildindex.client import BuildIndexClient
from shoal.model.digest import Digest
from shoal.model.errors import (
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    NameUnknown,
    Unsupported,
)
from shoal.model.manifest import IndexChildren
from shoal.model.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from shoal.origin.client import OriginCluster
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Rejected
from tests.cluster import RunningCluster

_names = (f"test/app-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    options = ["--proxies", "0", "--build-indexes", "2"]
    folder = tmp_path_factory.mktemp("cluster")
    # What these tests leave out never comes.
    quick = {"initial": "20ms", "attempts": 2}
    config = {"build-index": {"resolver": {"manifest": quick, "existence": quick}}}
    with RunningCluster.start(folder, agents=0, options=options, config=config) as running:
        yield running


class Registry:
    """What a proxy does with origins and build-indexes, for the tests of the latter."""

    def __init__(self, cluster: RunningCluster, http: HttpClient, folder: Path) -> None:
        self._folder = folder
        self.http = http
        self.origin_hosts = [url.removeprefix("http://") for url in cluster.origins]
        self.origins = OriginCluster(http, OriginsConfig(hosts=self.origin_hosts))
        self.index_urls = cluster.build_indexes
        hosts = [url.removeprefix("http://") for url in cluster.build_indexes]
        self.indexes = [BuildIndexClient(http, HostsConfig(hosts=[host])) for host in hosts]

    async def store(self, content: bytes) -> Digest:
        """Store a blob on the origins."""
        digest = Digest.of(content)
        path = self._folder / digest.hex
        await asyncio.to_thread(path.write_bytes, content)
        await self.origins.upload(digest, path, len(content), deadline=soon())
        return digest

    async def image(self, name: str, media_type: str = OCI_MANIFEST) -> bytes:
        """Store config, layer and manifest of an image; the manifest."""
        config = await self.store(f"config of {name}".encode())
        layer = await self.store(f"layer of {name}".encode())
        manifest = image_manifest(config, layer, media_type=media_type)
        await self.store(manifest)
        return manifest

    async def put(self, repository: str, tag: str, manifest: bytes, index: int = 0) -> Digest:
        digest = Digest.of(manifest)
        await self.indexes[index].put_tag(repository, tag, digest, manifest, None, deadline=soon())
        return digest

    async def tag(self, repository: str, tag: str, index: int = 0) -> Digest | None:
        return await self.indexes[index].get_tag(repository, tag, deadline=soon())


@pytest.fixture
async def registry(cluster: RunningCluster, tmp_path: Path) -> AsyncIterator[Registry]:
    http = HttpClient(user_agent="test")
    registry = Registry(cluster, http, tmp_path)
    yield registry
    await registry.origins.drain(10.0)
    await http.close()


@pytest.fixture
def repository() -> str:
    return next(_names)


def soon() -> Deadline:
    return Deadline.after(20.0)


def descriptor(digest: Digest, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": 1}


def image_manifest(config: Digest, layer: Digest, *, media_type: str = OCI_MANIFEST) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(layer, "application/vnd.oci.image.layer.v1.tar+gzip")],
        }
    ).encode()


def index_of(*manifests: bytes, child: str = OCI_MANIFEST, media_type: str = OCI_INDEX) -> bytes:
    children = [descriptor(Digest.of(manifest), child) for manifest in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": children}).encode()


async def more_than_a_manifest() -> AsyncIterator[bytes]:
    for _ in range(65):
        yield b" " * 64 * 1024


async def test_a_pushed_tag_is_read_from_every_build_index_at_once(
    registry: Registry, repository: str
) -> None:
    for version in ("1", "2", "3"):
        manifest = await registry.image(f"{repository}:{version}")
        digest = await registry.put(repository, "latest", manifest)
        assert await registry.tag(repository, "latest", index=0) == digest
        assert await registry.tag(repository, "latest", index=1) == digest


async def test_a_tag_that_moves_between_build_indexes_is_the_last_push_everywhere(
    registry: Registry, repository: str
) -> None:
    images = [await registry.image(f"{repository}:{version}") for version in range(6)]
    for number, manifest in enumerate(images):
        digest = await registry.put(repository, "latest", manifest, index=number % 2)
        assert [await registry.tag(repository, "latest", i) for i in (0, 1)] == [digest, digest]


async def test_pushes_of_one_tag_at_once_end_with_one_digest_everywhere(
    registry: Registry, repository: str
) -> None:
    images = [await registry.image(f"{repository}:{version}") for version in range(4)]
    for _ in range(5):
        pushes = (
            registry.put(repository, "latest", manifest, index=number % 2)
            for number, manifest in enumerate(images)
        )
        pushed = await asyncio.gather(*pushes)
        found = {await registry.tag(repository, "latest", index) for index in (0, 1)}
        assert len(found) == 1
        assert found <= set(pushed)


async def test_without_a_body_the_manifest_is_read_from_the_origins(
    registry: Registry, repository: str
) -> None:
    digest = Digest.of(await registry.image(repository))
    await registry.indexes[0].put_tag(repository, "v1", digest, None, None, deadline=soon())
    assert await registry.tag(repository, "v1") == digest


@pytest.mark.parametrize(
    "child, media_type", [(OCI_MANIFEST, OCI_INDEX), (DOCKER_MANIFEST, DOCKER_LIST)]
)
async def test_an_index_of_several_platforms_is_tagged(
    registry: Registry, repository: str, child: str, media_type: str
) -> None:
    platforms = [await registry.image(f"{repository}/{number}", child) for number in range(3)]
    index = index_of(*platforms, child=child, media_type=media_type)
    await registry.store(index)
    assert await registry.put(repository, "all", index) == await registry.tag(repository, "all")


async def test_a_missing_dependency_is_named_and_the_old_tag_stays(
    registry: Registry, repository: str
) -> None:
    old = await registry.put(repository, "latest", await registry.image(repository))
    config = await registry.store(f"config for {repository}".encode())
    layer = Digest.of(f"never pushed to {repository}".encode())
    broken = image_manifest(config, layer)
    with pytest.raises(ManifestBlobUnknown, match="push them first") as caught:
        await registry.put(repository, "latest", broken)
    nothing_but_config = sorted([str(layer), str(Digest.of(broken))])
    assert caught.value.detail == {"missing": nothing_but_config, "attempts": 2}
    await registry.store(broken)
    with pytest.raises(ManifestBlobUnknown) as caught:
        await registry.put(repository, "latest", broken)
    assert caught.value.detail == {"missing": [str(layer)], "attempts": 2}
    assert await registry.tag(repository, "latest") == old


async def test_a_missing_child_of_an_index_is_named(registry: Registry, repository: str) -> None:
    here = await registry.image(repository)
    elsewhere = image_manifest(Digest.of(b"x"), Digest.of(b"y"))
    index = index_of(here, elsewhere)
    await registry.store(index)
    with pytest.raises(ManifestBlobUnknown) as caught:
        await registry.put(repository, "all", index)
    assert caught.value.detail == {"missing": [str(Digest.of(elsewhere))], "attempts": 2}


async def test_an_index_whose_children_live_elsewhere_is_tagged_on_request(
    registry: Registry, repository: str
) -> None:
    here = await registry.image(repository)
    elsewhere = image_manifest(Digest.of(b"x"), Digest.of(b"y"))
    sparse = index_of(here, elsewhere)
    digest = await registry.store(sparse)
    with pytest.raises(ManifestBlobUnknown):
        await registry.put(repository, "all", sparse)
    for name, children in (("sparse", "present"), ("bare", "ignore")):
        await registry.indexes[0].put_tag(
            repository,
            name,
            digest,
            sparse,
            None,
            deadline=soon(),
            index_children=cast("IndexChildren", children),
        )
        assert await registry.tag(repository, name) == digest


async def test_a_push_needs_what_it_references_in_its_repository(
    registry: Registry, repository: str
) -> None:
    index = registry.indexes[0]
    manifest = await registry.image(repository)
    digest = Digest.of(manifest)

    async def push(number: int = 0) -> None:
        await registry.indexes[number].put_manifest(
            repository, digest, manifest, OCI_MANIFEST, tags=["v1", "latest"], deadline=soon()
        )

    with pytest.raises(ManifestBlobUnknown) as caught:
        await push()
    parts = [Digest.of(f"{part} of {repository}".encode()) for part in ("config", "layer")]
    assert caught.value.detail["missing"] == sorted(map(str, parts))
    with pytest.raises(NameUnknown):
        await index.tags(repository, deadline=soon())
    for part in parts:
        await index.link_blob(repository, part, deadline=soon())
    await push(1)
    for client in registry.indexes:
        assert await client.tags(repository, deadline=soon()) == ["latest", "v1"]
        found = await client.find_manifest(repository, "latest", deadline=soon())
        assert found is not None
        assert (found.digest, found.media_type, found.size) == (
            digest,
            OCI_MANIFEST,
            len(manifest),
        )


async def test_what_is_deleted_at_one_build_index_is_gone_at_the_other(
    registry: Registry, repository: str
) -> None:
    first, second = registry.indexes
    manifest = await registry.image(repository)
    digest = await registry.put(repository, "v1", manifest)
    await registry.put(repository, "v2", manifest)
    layer = Digest.of(f"layer of {repository}".encode())
    assert await second.delete_tag(repository, "v1", deadline=soon())
    assert await first.tags(repository, deadline=soon()) == ["v2"]
    with pytest.raises(Unsupported, match=str(digest)):
        await first.delete_blob(repository, layer, deadline=soon())
    assert await first.delete_manifest(repository, digest, deadline=soon())
    assert await second.find_manifest(repository, digest, deadline=soon()) is None
    assert await registry.tag(repository, "v2", index=1) is None
    assert await second.delete_blob(repository, layer, deadline=soon())
    assert not await first.has_blob(repository, layer, deadline=soon())
    assert not await first.delete_manifest(repository, digest, deadline=soon())


async def test_garbage_is_collected_when_it_is_asked_for(
    registry: Registry, repository: str
) -> None:
    index = registry.indexes[0]
    stray = Digest.of(f"stray of {repository}".encode())
    await index.link_blob(repository, stray, deadline=soon())
    await registry.put(repository, "v1", await registry.image(repository))

    async def collect(**params: str) -> list[tuple[str, str]]:
        answer = await registry.http.call(
            "POST", f"{registry.index_urls[0]}/internal/gc", params=params, deadline=soon()
        )
        items = json.loads(answer.body)["items"]
        return [(i["kind"], i["name"]) for i in items if i["repository"] == repository]

    assert await collect(dry_run="false") == []
    assert await collect(dry_run="true", grace="1ms") == [("blob", str(stray))]
    assert await index.has_blob(repository, stray, deadline=soon())
    assert await collect(dry_run="false", grace="1ms") == [("blob", str(stray))]
    for client in registry.indexes:
        assert not await client.has_blob(repository, stray, deadline=soon())
    assert await registry.tag(repository, "v1") is not None


async def test_manifests_that_are_none_are_refused(registry: Registry, repository: str) -> None:
    index = registry.indexes[0]
    manifest = await registry.image(repository)
    wrong = Digest.of(b"another")
    with pytest.raises(DigestInvalid):
        await index.put_tag(repository, "v1", wrong, manifest, None, deadline=soon())
    with pytest.raises(ManifestInvalid):
        await registry.put(repository, "v1", b'{"schemaVersion": 2')
    with pytest.raises(ManifestInvalid):
        await index.put_tag(
            repository, "v1", Digest.of(manifest), manifest, OCI_INDEX, deadline=soon()
        )
    url = f"{registry.index_urls[0]}/tags/{repository}:v1/digest/{wrong}"
    with pytest.raises(Rejected) as caught:
        await registry.http.call("PUT", url, data=more_than_a_manifest(), deadline=soon())
    assert caught.value.status == 413
    assert await registry.tag(repository, "v1") is None


async def test_a_blob_with_too_few_copies_is_copied_before_the_tag_is_accepted(
    registry: Registry, repository: str
) -> None:
    config = await registry.store(f"config for {repository}".encode())
    content = f"layer on one origin for {repository}".encode()
    layer = Digest.of(content)
    only = registry.origin_hosts[0]
    url = f"http://{only}/internal/blobs/{layer}"
    await registry.http.call("PUT", url, deadline=soon(), data=content, expect=(201,))
    manifest = image_manifest(config, layer)
    await registry.store(manifest)
    await registry.put(repository, "v1", manifest)
    presence = await registry.origins.stat_many([layer], deadline=soon())
    assert len(presence.copies[layer]) >= 2


async def test_lists_are_sorted_paged_and_complete_after_the_push(
    registry: Registry, repository: str
) -> None:
    manifest = await registry.image(repository)
    names = ["b", "B", "a", "1", "10", "9", "_", "v1.0-rc.1"]
    for name in names:
        await registry.put(repository, name, manifest)
    for index in registry.indexes:
        assert await index.tags(repository, deadline=soon()) == sorted(names)
        assert await index.tags(repository, 3, deadline=soon()) == sorted(names)[:3]
        assert await index.tags(repository, 3, "9", deadline=soon()) == sorted(names)[3:6]
        assert await index.tags(repository, 3, "zzz", deadline=soon()) == []
        repositories = await index.repositories(deadline=soon())
        assert repository in repositories
        assert repositories == sorted(repositories)
        before = repositories[: repositories.index(repository)]
        after = before[-1] if before else ""
        assert await index.repositories(1, after, deadline=soon()) == [repository]


async def test_page_sizes_are_clamped(registry: Registry, repository: str) -> None:
    await registry.put(repository, "a", await registry.image(repository))
    await registry.put(repository, "b", await registry.image(repository))
    base = f"{registry.index_urls[0]}/repositories/{repository}/tags"
    for n, expected in (("0", ["a"]), ("-5", ["a"]), ("99999999", ["a", "b"])):
        answer = await registry.http.call("GET", base, params={"n": n}, deadline=soon())
        assert json.loads(answer.body)["tags"] == expected


async def test_paths_are_taken_escaped_and_unescaped(registry: Registry) -> None:
    repository = next(_names) + "/with/depth"
    manifest = await registry.image(repository)
    digest = Digest.of(manifest)
    url = registry.index_urls[0]
    escaped = f"{repository}:v1".replace("/", "%2F").replace(":", "%3A")
    for path in (escaped, f"{repository}:v1"):
        await registry.http.call(
            "PUT", f"{url}/tags/{path}/digest/{digest}", data=manifest, deadline=soon()
        )
        answer = await registry.http.call("GET", f"{url}/tags/{path}", deadline=soon())
        assert answer.body.decode() == str(digest)
        head = await registry.http.call("HEAD", f"{url}/tags/{path}", deadline=soon())
        assert head.headers["Docker-Content-Digest"] == str(digest)
    for path in (repository, repository.replace("/", "%2F")):
        answer = await registry.http.call("GET", f"{url}/repositories/{path}/tags", deadline=soon())
        assert json.loads(answer.body) == {"tags": ["v1"], "more": False}


DIGEST = f"sha256:{'0' * 64}"
APP = "/repositories/app"
MANY_TAGS = "&".join(f"tag=t{number}" for number in range(101))
TOO_MANY = json.dumps(
    {"manifests": [["app", "v1"]] * 600, "blobs": [["app", DIGEST]] * 600}
).encode()


@pytest.mark.parametrize(
    "call, status, code",
    [
        (("GET", "/tags/app:absent", None), 404, "MANIFEST_UNKNOWN"),
        (("GET", "/tags/App:v1", None), 400, "NAME_INVALID"),
        (("GET", "/tags/app", None), 400, "NAME_INVALID"),
        (("GET", "/tags/app:.v1", None), 400, "TAG_INVALID"),
        (("GET", "/tags/app:" + "x" * 129, None), 400, "TAG_INVALID"),
        (("PUT", f"/tags/app:v%201/digest/{DIGEST}", b"{}"), 400, "TAG_INVALID"),
        (("PUT", "/tags/app:v1/digest/sha256:12", b"{}"), 400, "DIGEST_INVALID"),
        (("PUT", "/tags/app:v1/digest/md5:00", b"{}"), 400, "DIGEST_INVALID"),
        (("PUT", f"/tags/app:v1/digest/{DIGEST}", b"{}"), 400, "DIGEST_INVALID"),
        (("PUT", f"/tags/app:v1/digest/{DIGEST}", None), 404, "MANIFEST_BLOB_UNKNOWN"),
        (("PUT", f"/tags/app:v1/digest/{DIGEST}?replicate=1", None), 400, "BAD_REQUEST"),
        (("PUT", f"/tags/app:v1/digest/{DIGEST}?index_children=no", None), 400, "BAD_REQUEST"),
        (("PUT", f"{APP}/manifests/{DIGEST}?index_children=", None), 400, "BAD_REQUEST"),
        (("PUT", f"{APP}/manifests/{DIGEST}?tag=.v1", b"{}"), 400, "TAG_INVALID"),
        (("PUT", f"{APP}/manifests/{DIGEST}?{MANY_TAGS}", b"{}"), 400, "BAD_REQUEST"),
        (("PUT", f"{APP}/manifests/{DIGEST}", b"{}"), 400, "DIGEST_INVALID"),
        (("PUT", f"/repositories/APP/manifests/{DIGEST}", b"{}"), 400, "NAME_INVALID"),
        (("PUT", f"{APP}/blobs/sha256:12", None), 400, "DIGEST_INVALID"),
        (("PUT", f"{APP}/blobs/{DIGEST}?mount=all", None), 400, "BAD_REQUEST"),
        (("PUT", f"{APP}/blobs/{DIGEST}?mount=any&from=app", None), 400, "BAD_REQUEST"),
        (("PUT", f"{APP}/blobs/{DIGEST}?from=APP", None), 400, "NAME_INVALID"),
        (("PUT", f"{APP}/blobs/{DIGEST}?from=absent", None), 404, "BLOB_UNKNOWN"),
        (("PUT", f"{APP}/blobs/{DIGEST}?mount=any", None), 404, "BLOB_UNKNOWN"),
        (("DELETE", f"{APP}/blobs/{DIGEST}", None), 404, "BLOB_UNKNOWN"),
        (("DELETE", f"{APP}/manifests/{DIGEST}", None), 404, "MANIFEST_UNKNOWN"),
        (("DELETE", f"{APP}/manifests/v1", None), 400, "DIGEST_INVALID"),
        (("DELETE", f"{APP}/tags/absent", None), 404, "MANIFEST_UNKNOWN"),
        (("DELETE", f"{APP}/tags/-", None), 400, "TAG_INVALID"),
        (("GET", f"{APP}/referrers/v1", None), 400, "DIGEST_INVALID"),
        (("GET", f"{APP}/referrers/{DIGEST}?n=x", None), 400, "BAD_REQUEST"),
        (("POST", "/internal/lookup", b'{"blobs": [["app"]]}'), 400, "BAD_REQUEST"),
        (("POST", "/internal/lookup", TOO_MANY), 400, "BAD_REQUEST"),
        (("POST", "/internal/wanted", b'{"digests": 1}'), 400, "BAD_REQUEST"),
        (("POST", "/internal/gc?grace=5", None), 400, "BAD_REQUEST"),
        (("POST", "/internal/gc?dry_run=perhaps", None), 400, "BAD_REQUEST"),
        (("GET", "/repositories/absent/tags", None), 404, "NAME_UNKNOWN"),
        (("GET", "/repositories?n=many", None), 400, "BAD_REQUEST"),
        (("GET", "/internal/changes?after=x", None), 400, "BAD_REQUEST"),
        (("PUT", "/internal/records", b"{"), 400, "BAD_REQUEST"),
        (("PUT", "/internal/records", b'{"records": [{"repository": "a"}]}'), 400, "BAD_REQUEST"),
        (("DELETE", "/tags/app:v1", None), 405, "UNSUPPORTED"),
        (("GET", "/nothing", None), 404, "NOT_FOUND"),
    ],
)
async def test_bad_requests_get_the_errors_of_the_spec(
    registry: Registry, call: tuple[str, str, bytes | None], status: int, code: str
) -> None:
    method, path, body = call
    with pytest.raises(CallFailed) as caught:
        await registry.http.call(method, registry.index_urls[0] + path, data=body, deadline=soon())
    assert (caught.value.status, caught.value.code) == (status, code)


async def test_a_bad_record_of_a_neighbour_is_refused_whole(
    registry: Registry, repository: str
) -> None:
    def record(tag: str) -> dict[str, Any]:
        version = [1, 0, "0" * 16]
        return {
            "kind": "tag",
            "repository": repository,
            "name": tag,
            "value": DIGEST,
            "version": version,
        }

    body = json.dumps({"records": [record("good"), record("bad tag")]}).encode()
    with pytest.raises(Rejected, match="bad tag"):
        await registry.http.call(
            "PUT", f"{registry.index_urls[0]}/internal/records", data=body, deadline=soon()
        )
    assert await registry.tag(repository, "good") is None
