# SPDX-License-Identifier: Apache-2.0
"""Pushes through a real proxy to real origins and a real build-index, and pulls from the proxy."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args

import pytest

from shoal.model.digest import Digest
from shoal.model.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from shoal.registry.client import CHUNK_BYTES, RegistryClient, Way
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound, Rejected
from tests.cluster import RunningCluster

NAME = "team/app"
SIZE = 3 * CHUNK_BYTES + 12_345
EMPTY_CONFIG = b"{}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster without agents: nothing here needs one."""
    with RunningCluster.start(tmp_path_factory.mktemp("push"), agents=0) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


@pytest.fixture
def registry(cluster: RunningCluster, http: HttpClient) -> RegistryClient:
    return RegistryClient(http, cluster.proxy)


@pytest.fixture
def layer(tmp_path: Path) -> tuple[Path, bytes, Digest]:
    path = tmp_path / "layer"
    content = os.urandom(SIZE)
    path.write_bytes(content)
    return path, content, Digest.of(content)


def manifest(kind: str, *layers: bytes) -> bytes:
    def entry(media_type: str, content: bytes) -> dict[str, object]:
        digest = str(Digest.of(content))
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": entry(OCI_CONFIG, EMPTY_CONFIG),
        "layers": [entry(OCI_LAYER, layer) for layer in layers],
    }
    return json.dumps(document, indent=2).encode()


async def push_image(registry: RegistryClient, kind: str, layer: bytes) -> bytes:
    for content in (EMPTY_CONFIG, layer):
        await registry.push_blob(NAME, Digest.of(content), content)
    return manifest(kind, layer)


async def pulled(
    registry: RegistryClient,
    digest: Digest,
    start: int = 0,
    stop: int | None = None,
    *,
    name: str = NAME,
) -> bytes:
    async with registry.stream_blob(name, digest, start=start, stop=stop) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


async def copies(http: HttpClient, cluster: RunningCluster, digest: Digest) -> int:
    """How many origins have the blob themselves."""
    present = 0
    for origin in cluster.origins:
        url = f"{origin}/internal/blobs/{digest}"
        try:
            await http.call("HEAD", url, deadline=Deadline.after(10))
        except NotFound:
            continue
        present += 1
    return present


async def until_copied(
    http: HttpClient, cluster: RunningCluster, digest: Digest, wanted: int
) -> None:
    async with asyncio.timeout(30):
        while await copies(http, cluster, digest) < wanted:  # noqa: ASYNC110 -- other processes
            await asyncio.sleep(0.02)


def left_at_the_proxy(cluster: RunningCluster) -> list[str]:
    folder = cluster.data_dir("proxy-0")
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("way", get_args(Way))
async def test_each_way_of_pushing_ends_in_safe_copies(
    cluster: RunningCluster,
    http: HttpClient,
    registry: RegistryClient,
    layer: tuple[Path, bytes, Digest],
    way: Way,
) -> None:
    path, content, digest = layer
    assert await registry.push_blob(NAME, digest, path, way=way)
    assert await copies(http, cluster, digest) >= 2
    # Docker asks right after its PUT, and needs a yes.
    assert await registry.stat_blob(NAME, digest) == SIZE
    assert await pulled(registry, digest) == content
    await until_copied(http, cluster, digest, 3)
    assert left_at_the_proxy(cluster) == []


async def test_a_blob_named_by_sha512(
    registry: RegistryClient, layer: tuple[Path, bytes, Digest]
) -> None:
    path, content, _ = layer
    digest = Digest.of(content, "sha512")
    await registry.push_blob(NAME, digest, path)
    assert await pulled(registry, digest) == content


async def test_an_empty_blob(registry: RegistryClient) -> None:
    digest = Digest.of(b"")
    await registry.push_blob(NAME, digest, b"")
    assert await registry.stat_blob(NAME, digest) == 0
    assert await pulled(registry, digest) == b""


async def test_parts_of_a_blob(registry: RegistryClient, layer: tuple[Path, bytes, Digest]) -> None:
    path, content, digest = layer
    await registry.push_blob(NAME, digest, path)
    assert await pulled(registry, digest, 1_000_000) == content[1_000_000:]
    assert await pulled(registry, digest, 5, 6) == content[5:6]
    assert await pulled(registry, digest, SIZE - 10, SIZE + 10) == content[-10:]


async def test_a_mount_sends_no_bytes(
    registry: RegistryClient, layer: tuple[Path, bytes, Digest]
) -> None:
    path, content, digest = layer
    assert await registry.push_blob("other/app", digest, path, mount_from=NAME, way="put")
    assert not await registry.push_blob("third/app", digest, path, mount_from="other/app")
    assert await pulled(registry, digest, name="third/app") == content
    with pytest.raises(NotFound):
        await pulled(registry, digest)


async def test_many_clients_push_one_blob_at_the_same_time(
    cluster: RunningCluster,
    http: HttpClient,
    registry: RegistryClient,
    layer: tuple[Path, bytes, Digest],
) -> None:
    path, content, digest = layer
    await asyncio.gather(*(registry.push_blob(NAME, digest, path) for _ in range(6)))
    assert await pulled(registry, digest) == content
    await until_copied(http, cluster, digest, 3)
    assert left_at_the_proxy(cluster) == []


@pytest.mark.parametrize(
    "image_type, index_type", [(OCI_MANIFEST, OCI_INDEX), (DOCKER_MANIFEST, DOCKER_LIST)]
)
async def test_images_and_an_index_of_them(
    cluster: RunningCluster,
    http: HttpClient,
    registry: RegistryClient,
    image_type: str,
    index_type: str,
) -> None:
    children = []
    for platform in ("amd64", "arm64"):
        body = await push_image(registry, image_type, os.urandom(1000))
        digest = await registry.put_manifest(NAME, Digest.of(body), body, image_type)
        children.append(
            {
                "mediaType": image_type,
                "digest": str(digest),
                "size": len(body),
                "platform": {"os": "linux", "architecture": platform},
            }
        )
        child = await registry.get_manifest(NAME, digest)
        assert (child.body, child.media_type) == (body, image_type)
    document = {"schemaVersion": 2, "mediaType": index_type, "manifests": children}
    body = json.dumps(document).encode()
    tag = f"multi-{image_type.rpartition('.')[2].partition('+')[0]}-{len(index_type)}"
    digest = await registry.put_manifest(NAME, tag, body, index_type)
    for reference in (tag, digest):
        index = await registry.get_manifest(NAME, reference)
        assert (index.body, index.media_type, index.digest) == (body, index_type, digest)
    assert tag in await registry.tags(NAME)
    assert await copies(http, cluster, digest) >= 2


async def test_an_index_whose_children_live_elsewhere_says_so_in_the_request(
    cluster: RunningCluster, http: HttpClient, registry: RegistryClient
) -> None:
    here = await push_image(registry, OCI_MANIFEST, os.urandom(1000))
    await registry.put_manifest(NAME, Digest.of(here), here, OCI_MANIFEST)
    children = [
        {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(here)}
        for digest in (Digest.of(here), Digest.of(b"elsewhere"))
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}

    async def put(query: str) -> int:
        url = f"{cluster.proxy}/v2/{NAME}/manifests/sparse{query}"
        deadline = Deadline.after(30)
        headers = {"Content-Type": OCI_INDEX}
        expect = (201, 400, 404)
        body = json.dumps(index).encode()
        answer = await http.call(
            "PUT", url, deadline=deadline, data=body, headers=headers, expect=expect
        )
        return answer.status

    assert await put("") == 404
    assert await put("?index_children=required") == 404
    assert await put("?index_children=some") == 400
    assert await put("?index_children=present") == 201
    assert json.loads((await registry.get_manifest(NAME, "sparse")).body) == index


async def test_a_large_manifest(registry: RegistryClient) -> None:
    await registry.push_blob(NAME, Digest.of(EMPTY_CONFIG), EMPTY_CONFIG)
    body = manifest(OCI_MANIFEST)
    body = body[:-2] + b',"annotations": {"pad": "' + b"x" * 900_000 + b'"}}'
    digest = await registry.put_manifest(NAME, "large", body, OCI_MANIFEST)
    assert (await registry.get_manifest(NAME, "large")).digest == digest == Digest.of(body)


async def test_a_tag_that_moves_names_the_newer_image(registry: RegistryClient) -> None:
    digests = []
    for _ in range(3):
        body = await push_image(registry, OCI_MANIFEST, os.urandom(100))
        digests.append(await registry.put_manifest(NAME, "latest", body, OCI_MANIFEST))
        assert (await registry.get_manifest(NAME, "latest")).digest == digests[-1]
    for digest in digests:
        assert (await registry.get_manifest(NAME, digest)).digest == digest


async def test_a_manifest_that_misses_something_gets_no_tag(registry: RegistryClient) -> None:
    await registry.push_blob(NAME, Digest.of(EMPTY_CONFIG), EMPTY_CONFIG)
    absent = os.urandom(50)
    body = manifest(OCI_MANIFEST, absent)
    for reference in ("incomplete", Digest.of(body)):
        with pytest.raises(NotFound) as refused:
            await registry.put_manifest(NAME, reference, body, OCI_MANIFEST)
        assert refused.value.code == "MANIFEST_BLOB_UNKNOWN"
        assert str(Digest.of(absent)) in refused.value.detail
    with pytest.raises(NotFound):
        await registry.get_manifest(NAME, "incomplete")
    await registry.push_blob(NAME, Digest.of(absent), absent)
    await registry.put_manifest(NAME, "incomplete", body, OCI_MANIFEST)


async def test_wrong_bytes_are_kept_nowhere(
    cluster: RunningCluster,
    http: HttpClient,
    registry: RegistryClient,
    layer: tuple[Path, bytes, Digest],
) -> None:
    path, content, _ = layer
    for way in get_args(Way):
        claimed = Digest.of(content + way.encode())
        with pytest.raises(Rejected) as refused:
            await registry.push_blob(NAME, claimed, path, way=way)
        assert (refused.value.status, refused.value.code) == (400, "DIGEST_INVALID")
        assert await registry.stat_blob(NAME, claimed) is None
        assert await copies(http, cluster, claimed) == 0
    assert left_at_the_proxy(cluster) == []
