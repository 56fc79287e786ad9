# SPDX-License-Identifier: Apache-2.0
"""An image that the proxy has the origins hold before anybody pulls it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_INDEX, OCI_MANIFEST
from shoal.proxy import prefetch as prefetch_module
from shoal.proxy.custody import NoCustody
from shoal.proxy.prefetch import Prefetch
from shoal.proxy.prefetch_api import PrefetchRoutes
from shoal.registry.app import registry_routes
from shoal.web.server import application
from tests.unit.proxy.memory_proxy import NAME, Proxy, image, soon
from tests.unit.registry_http import Client

V1 = "/proxy/v1/registry/prefetch"
V2 = "/proxy/v2/registry/prefetch"
CONFIGS = (b"{}", b'{"a":1}')
LAYERS = (b"first layer", b"second, longer layer")


class Held(NoCustody):
    """Custody of some blobs."""

    def __init__(self, digests: Collection[Digest] = ()) -> None:
        self.digests = set(digests)

    async def size(self, digest: Digest) -> int | None:
        return 1 if digest in self.digests else None


def index_of(*children: tuple[bytes, str]) -> bytes:
    entries = []
    for manifest, platform in children:
        os, architecture, *variant = platform.split("/")
        said = {"os": os, "architecture": architecture} | (
            {"variant": variant[0]} if variant else {}
        )
        entry = {
            "mediaType": OCI_MANIFEST,
            "digest": str(Digest.of(manifest)),
            "size": len(manifest),
            "platform": said,
        }
        entries.append(entry)
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


class Cluster:
    """A proxy whose origins may have lost what the backend still has."""

    def __init__(self, folder: Path) -> None:
        self.proxy = Proxy(folder)
        self.custody = Held()

    @property
    def fetching(self) -> set[Digest]:
        assert {name for _, name in self.proxy.origins.fetching} <= {NAME, "docker.io/library/app"}
        return {digest for digest, _ in self.proxy.origins.fetching}

    async def push(
        self, manifest: bytes, *contents: bytes, tag: str = "v1", name: str = NAME, **how: Any
    ) -> Digest:
        for content in contents:
            self.proxy.hold(content, name)
        stored = await self.proxy.service.put_manifest(name, tag, manifest, None, soon(), **how)
        return stored.digest

    def evict(self, *contents: bytes, name: str = NAME, backed: bool = True) -> None:
        """Have the origins lose blobs, which the backend has or has not."""
        for content in contents:
            digest = Digest.of(content)
            del self.proxy.origins.blobs[digest]
            if backed:
                self.proxy.origins.backed[name, digest] = len(content)

    def application(self) -> web.Application:
        async def ready() -> list[str]:
            return []

        app = application("proxy", readiness=ready)
        service = self.proxy.service
        registry_routes(app, service, service, upstreams=["docker.io"])
        PrefetchRoutes(Prefetch(service, self.proxy.origins, self.custody)).add_to(app)
        return app


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "uploads")


@pytest.fixture
async def http(cluster: Cluster) -> AsyncIterator[Client]:
    async with TestClient(TestServer(cluster.application())) as running:
        yield running


async def ask(http: Client, path: str, body: Any = None) -> tuple[int, Any]:
    async with http.post(path, json=body) as answer:
        return answer.status, await answer.json()


async def test_what_is_there_is_ready(cluster: Cluster, http: Client) -> None:
    manifest = image(*LAYERS)
    digest = await cluster.push(manifest, *LAYERS, CONFIGS[0])
    expected = {
        "repository": NAME,
        "reference": "v1",
        "digest": str(digest),
        "ready": True,
        "contents": 4,
        "size": len(manifest) + sum(map(len, LAYERS)) + len(CONFIGS[0]),
        "coming": 0,
        "coming_size": 0,
        "elsewhere": [],
    }
    assert await ask(http, f"/prefetch/{NAME}:v1") == (200, expected)
    status, by_digest = await ask(http, f"/prefetch/{NAME}@{digest}")
    assert (status, by_digest) == (200, expected | {"reference": str(digest)})
    assert cluster.fetching == set()


async def test_what_only_the_backend_has_comes(cluster: Cluster, http: Client) -> None:
    await cluster.push(image(*LAYERS), *LAYERS, CONFIGS[0])
    cluster.evict(LAYERS[1], CONFIGS[0])
    status, report = await ask(http, f"/prefetch/{NAME}:v1")
    assert (status, report["ready"], report["coming"]) == (202, False, 2)
    assert report["coming_size"] == len(LAYERS[1]) + len(CONFIGS[0])
    assert cluster.fetching == {Digest.of(LAYERS[1]), Digest.of(CONFIGS[0])}


async def test_a_manifest_that_the_proxy_remembers_is_asked_for_as_well(
    cluster: Cluster, http: Client
) -> None:
    manifest = image(*LAYERS)
    await cluster.push(manifest, *LAYERS, CONFIGS[0])
    await ask(http, f"/prefetch/{NAME}:v1")
    cluster.evict(manifest)
    status, report = await ask(http, f"/prefetch/{NAME}:v1")
    assert (status, report["coming"]) == (202, 1)
    assert cluster.fetching == {Digest.of(manifest)}


async def pushed_index(cluster: Cluster) -> list[bytes]:
    manifests = [image(layer, config=config) for layer, config in zip(LAYERS, CONFIGS, strict=True)]
    for number, manifest in enumerate(manifests):
        parts = (LAYERS[number], CONFIGS[number])
        await cluster.push(manifest, *parts, tag=f"child{number}")
    index = index_of((manifests[0], "linux/amd64"), (manifests[1], "linux/arm64/v8"))
    await cluster.push(index)
    cluster.evict(*LAYERS)
    return manifests


@pytest.mark.parametrize(
    "query, layers, contents",
    [
        ("", LAYERS, 7),
        ("?platform=linux/amd64", LAYERS[:1], 4),
        ("?platform=linux/arm64", LAYERS[1:], 4),
        ("?platform=linux/arm64/v8", LAYERS[1:], 4),
        ("?platform=linux/arm64&platform=linux/amd64", LAYERS, 7),
    ],
)
async def test_of_an_index_all_children_come_or_those_for_a_platform(
    cluster: Cluster, http: Client, query: str, layers: tuple[bytes, ...], contents: int
) -> None:
    await pushed_index(cluster)
    status, report = await ask(http, f"/prefetch/{NAME}:v1{query}")
    assert (status, report["contents"], report["coming"]) == (202, contents, len(layers))
    assert cluster.fetching == set(map(Digest.of, layers))


async def test_a_platform_that_the_image_is_not_for_is_said(cluster: Cluster, http: Client) -> None:
    await pushed_index(cluster)
    status, answer = await ask(http, f"/prefetch/{NAME}:v1?platform=linux/riscv64")
    (error,) = answer["errors"]
    assert (status, error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert error["detail"]["platforms"] == ["linux/amd64", "linux/arm64/v8"]
    assert cluster.fetching == set()


async def test_children_that_live_elsewhere_are_told(cluster: Cluster, http: Client) -> None:
    here, elsewhere = image(LAYERS[0]), image(LAYERS[1])
    await cluster.push(here, LAYERS[0], CONFIGS[0], tag="child")
    index = index_of((here, "linux/amd64"), (elsewhere, "linux/arm64"))
    await cluster.push(index, index_children="present")
    status, report = await ask(http, f"/prefetch/{NAME}:v1")
    assert (status, report["elsewhere"]) == (200, [str(Digest.of(elsewhere))])


async def test_what_waits_at_the_proxy_is_coming(cluster: Cluster, http: Client) -> None:
    await cluster.push(image(*LAYERS), *LAYERS, CONFIGS[0])
    cluster.evict(LAYERS[0], backed=False)
    cluster.custody.digests = {Digest.of(LAYERS[0])}
    status, report = await ask(http, f"/prefetch/{NAME}:v1")
    assert (status, report["coming"]) == (202, 1)
    assert cluster.fetching == set()


async def test_a_layer_that_is_nowhere_is_named_and_the_others_come(
    cluster: Cluster, http: Client
) -> None:
    await cluster.push(image(*LAYERS), *LAYERS, CONFIGS[0])
    cluster.evict(LAYERS[0], backed=False)
    cluster.evict(LAYERS[1])
    status, answer = await ask(http, f"/prefetch/{NAME}:v1")
    (error,) = answer["errors"]
    assert (status, error["code"]) == (404, "BLOB_UNKNOWN")
    assert error["detail"] == {"missing": [str(Digest.of(LAYERS[0]))]}
    assert cluster.fetching == {Digest.of(LAYERS[1])}


async def test_origins_that_cannot_be_asked_are_no_404(cluster: Cluster, http: Client) -> None:
    await cluster.push(image(*LAYERS), *LAYERS, CONFIGS[0])
    cluster.proxy.origins.failure = "refused"
    status, answer = await ask(http, f"/prefetch/{NAME}:v1")
    (error,) = answer["errors"]
    assert (status, error["code"]) == (503, "UNAVAILABLE")
    assert "4 blob(s)" in error["message"]


@pytest.mark.parametrize(
    "path, status, code",
    [
        (f"/prefetch/{NAME}:v2", 404, "MANIFEST_UNKNOWN"),
        ("/prefetch/Team:v1", 400, "NAME_INVALID"),
        (f"/prefetch/{NAME}:-", 400, "TAG_INVALID"),
        (f"/prefetch/{NAME}@sha256:1", 400, "DIGEST_INVALID"),
        (f"/prefetch/{NAME}:v1?platform=linux", 400, "BAD_REQUEST"),
        (f"/prefetch/{NAME}:v1?" + "platform=a/b&" * 21, 400, "BAD_REQUEST"),
    ],
)
async def test_refusals(http: Client, path: str, status: int, code: str) -> None:
    answered, answer = await ask(http, path)
    assert (answered, answer["errors"][0]["code"]) == (status, code)


async def test_an_image_has_bounds(
    cluster: Cluster, http: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pushed_index(cluster)
    monkeypatch.setattr(prefetch_module, "MAX_DEPTH", 1)
    status, answer = await ask(http, f"/prefetch/{NAME}:v1")
    assert (status, answer["errors"][0]["code"]) == (400, "MANIFEST_INVALID")
    monkeypatch.setattr(prefetch_module, "MAX_CONTENTS", 2)
    status, answer = await ask(http, f"/prefetch/{NAME}:v1")
    assert "more than 2" in answer["errors"][0]["message"]


async def test_something_that_is_no_image_is_one_blob(cluster: Cluster, http: Client) -> None:
    digest = cluster.proxy.hold(LAYERS[0])
    cluster.proxy.index.entries[NAME, "file"] = digest
    cluster.evict(LAYERS[0])
    status, report = await ask(http, f"/prefetch/{NAME}:file")
    assert (status, report["contents"], report["coming"]) == (202, 1, 1)


@pytest.mark.parametrize(
    "named, repository",
    [
        ("team/app:v1", NAME),
        ("127.0.0.1/team/app:v1", NAME),
        ("proxy.example:5000/team/app:v1", NAME),
        ("docker.io/app:v1", "docker.io/library/app"),
        ("docker.io/library/app:v1", "docker.io/library/app"),
    ],
)
async def test_the_image_may_be_named_with_its_registry(
    cluster: Cluster, http: Client, named: str, repository: str
) -> None:
    await cluster.push(image(LAYERS[0]), LAYERS[0], CONFIGS[0], name=repository)
    status, report = await ask(http, f"/prefetch/{named}")
    assert (status, report["repository"]) == (200, repository)


@pytest.mark.parametrize("path", [V1, V2])
async def test_krakens_request_is_understood(cluster: Cluster, http: Client, path: str) -> None:
    await cluster.push(image(*LAYERS), *LAYERS, CONFIGS[0])
    cluster.evict(LAYERS[0])
    tag = f"kraken-proxy.example:15000/{NAME}:v1"
    status, answer = await ask(http, path, {"tag": tag, "trace_id": "t-1"})
    assert status == 200
    assert answer.pop("message").startswith("1 of 4 blobs and manifests (11 bytes)")
    assert answer == {"tag": tag, "prefetched": True, "status": "success", "trace_id": "t-1"}
    assert cluster.fetching == {Digest.of(LAYERS[0])}


async def test_krakens_request_fails_in_its_form(cluster: Cluster, http: Client) -> None:
    status, answer = await ask(http, V2, {"tag": f"{NAME}:v1", "trace_id": "t-1"})
    assert status == 404
    assert (answer["prefetched"], answer["status"]) == (False, "failure")
    assert (answer["error"], answer["trace_id"]) == ("MANIFEST_UNKNOWN", "t-1")
    assert f"{NAME} has no tag v1" in answer["message"]
    async with http.post(V2, data=b"[") as malformed:
        answer = await malformed.json()
    assert (malformed.status, answer["status"]) == (400, "failure")
    assert answer["trace_id"]
