# SPDX-License-Identifier: Apache-2.0
"""Another registry as a replication target: a small one of the tests, and Shoal's own API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shoal.backend.base import BlobName, LinkName, Repositories, TagName, TagsOf
from shoal.backend.config import RegistryBackendConfig
from shoal.backend.registry import RegistryBackend
from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST
from shoal.web.failures import NotFound, Rejected
from tests.unit.backend.registry_server import (
    BASIC,
    PASSWORD,
    USER,
    FakeRegistry,
    error,
    manifest_of,
    soon,
)
from tests.unit.registry_http import Registry

LAYER = bytes(range(256)) * 20_000
BODY = manifest_of(LAYER)
REPOSITORY = "team/app"
BLOB = BlobName(REPOSITORY, Digest.of(LAYER))
MANIFEST = BlobName(REPOSITORY, Digest.of(BODY))
TAG = TagName(REPOSITORY, "v1")


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        yield running


def target(url: str, **settings: object) -> RegistryBackend:
    config = {"kind": "registry", "url": url, "timeout": 5.0, **settings}
    return RegistryBackend.of(RegistryBackendConfig.model_validate(config))


@pytest.fixture
async def backend(registry: FakeRegistry) -> AsyncIterator[RegistryBackend]:
    made = target(registry.base)
    yield made
    await made.close()


async def test_an_image_is_replicated_to_shoals_own_api(tmp_path: Path) -> None:
    app = Registry().application()
    async with TestServer(app) as server:
        backend = target(f"http://127.0.0.1:{server.port}", repository="mirror/{repository}")
        layer = tmp_path / "layer"
        layer.write_bytes(LAYER)
        config = BlobName(REPOSITORY, Digest.of(b"{}"))
        await backend.put(BLOB, layer, deadline=soon())
        await backend.put(config, b"{}", deadline=soon())
        await backend.put(MANIFEST, BODY, deadline=soon())
        for link in (
            LinkName(REPOSITORY, BLOB.digest, "blob"),
            LinkName(REPOSITORY, MANIFEST.digest, "manifest"),
        ):
            await backend.put(link, str(link.digest).encode(), deadline=soon())
        await backend.put(TAG, str(MANIFEST.digest).encode(), deadline=soon())
        assert await backend.head_tag(REPOSITORY, "v1", soon()) == MANIFEST.digest
        found = await backend.manifest(REPOSITORY, "v1", soon())
        assert found == (MANIFEST.digest, OCI_MANIFEST, BODY)
        async with backend.get(BLOB, 5, 500, deadline=soon()) as content:
            assert b"".join([part async for part in content.chunks()]) == LAYER[5:500]
        assert (await backend.list(TagsOf(REPOSITORY), deadline=soon())).names == ("v1",)
        assert (await backend.list(Repositories(), deadline=soon())).names == (REPOSITORY,)
        assert await backend.delete(TAG, deadline=soon())
        assert not await backend.delete(TAG, deadline=soon())
        await backend.close()


async def test_a_blob_is_streamed_and_sent_once(
    backend: RegistryBackend, registry: FakeRegistry, tmp_path: Path
) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(LAYER)
    for _ in range(2):
        await backend.put(BLOB, layer, deadline=soon())
    assert registry.blobs[REPOSITORY, str(BLOB.digest)] == LAYER
    (sent,) = registry.requests("PATCH")
    assert sent.headers["Content-Length"] == str(len(LAYER))
    assert len(registry.requests("POST")) == len(registry.requests("PUT")) == 1


async def test_an_empty_blob_is_stored(backend: RegistryBackend, registry: FakeRegistry) -> None:
    await backend.put(BlobName(REPOSITORY, Digest.of(b"")), b"", deadline=soon())
    assert registry.blobs[REPOSITORY, str(Digest.of(b""))] == b""


async def test_content_with_another_digest_is_refused_by_the_registry(
    backend: RegistryBackend,
) -> None:
    with pytest.raises(Rejected, match="DIGEST_INVALID"):
        await backend.put(BLOB, b"something else", deadline=soon())


async def test_an_upload_goes_on_when_the_authorization_is_asked_for(
    registry: FakeRegistry,
) -> None:
    @registry.hook
    async def basic(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != BASIC:
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})
        return None

    backend = target(registry.base, username=USER, password=PASSWORD)
    await backend.put(BLOB, LAYER, deadline=soon())
    await backend.close()
    assert registry.blobs[REPOSITORY, str(BLOB.digest)] == LAYER


async def test_a_stream_is_sent_anew_when_its_token_expired(registry: FakeRegistry) -> None:
    refused: list[str] = []

    @registry.hook
    async def expired(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PATCH" and not refused:
            refused.append(request.path)
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})
        return None

    backend = target(registry.base, username=USER, password=PASSWORD)
    await backend.put(BLOB, LAYER, deadline=soon())
    await backend.close()
    assert len(registry.requests("PATCH")) == 2
    assert registry.blobs[REPOSITORY, str(BLOB.digest)] == LAYER


async def test_a_tag_before_its_manifest_is_to_be_tried_again(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    with pytest.raises(NotFound, match="has not been stored there yet"):
        await backend.put(TAG, str(MANIFEST.digest).encode(), deadline=soon())
    link = LinkName(REPOSITORY, BLOB.digest, "blob")
    with pytest.raises(NotFound, match="has not been stored there yet"):
        await backend.put(link, str(BLOB.digest).encode(), deadline=soon())
    assert not registry.requests("PUT")


async def test_a_manifest_before_its_layers_is_to_be_tried_again(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    await backend.put(MANIFEST, BODY, deadline=soon())

    @registry.hook
    async def incomplete(request: web.Request) -> web.StreamResponse | None:
        wrong = request.method == "PUT" and "/manifests/" in request.path
        return error(400, "MANIFEST_BLOB_UNKNOWN") if wrong else None

    with pytest.raises(NotFound, match="MANIFEST_BLOB_UNKNOWN"):
        await backend.put(TAG, str(MANIFEST.digest).encode(), deadline=soon())


@pytest.mark.parametrize("content", [b"<html>", b"sha256:short", b"\xff\xfe"])
async def test_a_tag_is_a_digest(backend: RegistryBackend, content: bytes) -> None:
    with pytest.raises(Rejected, match="a tag is a digest"):
        await backend.put(TAG, content, deadline=soon())


async def test_a_tag_of_what_is_no_manifest_is_refused(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    registry.add_blob(REPOSITORY, b"just a layer")
    with pytest.raises(Rejected, match="not a manifest"):
        await backend.put(TAG, str(Digest.of(b"just a layer")).encode(), deadline=soon())
    registry.add_blob(REPOSITORY, b" " * (4 * 1024 * 1024 + 1))
    big = Digest.of(b" " * (4 * 1024 * 1024 + 1))
    with pytest.raises(Rejected, match="no manifest"):
        await backend.put(TAG, str(big).encode(), deadline=soon())


async def test_deleting_tells_whether_it_was_there(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    registry.add_blob(REPOSITORY, LAYER)
    registry.add_manifest(REPOSITORY, BODY, "v1")
    for name in (TAG, BLOB, MANIFEST):
        assert await backend.delete(name, deadline=soon())
        assert not await backend.delete(name, deadline=soon())


async def test_a_registry_that_does_not_delete_says_so(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    @registry.hook
    async def refuse(request: web.Request) -> web.StreamResponse | None:
        return error(405, "UNSUPPORTED") if request.method == "DELETE" else None

    with pytest.raises(Rejected, match="UNSUPPORTED"):
        await backend.delete(TAG, deadline=soon())


@pytest.mark.parametrize("location", ["", "ftp://x/", "http://user:pass@127.0.0.1/x"])
async def test_an_upload_with_a_hostile_location_does_not_go_on(
    backend: RegistryBackend, registry: FakeRegistry, location: str
) -> None:
    @registry.hook
    async def hostile(request: web.Request) -> web.StreamResponse | None:
        if request.method != "POST":
            return None
        return web.Response(status=202, headers={"Location": location})

    with pytest.raises(Rejected, match="its upload cannot go on"):
        await backend.put(BLOB, LAYER, deadline=soon())
