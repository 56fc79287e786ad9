# SPDX-License-Identifier: Apache-2.0
"""What write_back and write_through promise, over origins and a build-index in memory."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from shoal.buildindex.client import BuildIndexClient
from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUnknown,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    Unavailable,
)
from shoal.model.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from shoal.origin.client import OriginCluster
from shoal.proxy.api import proxy_application
from shoal.proxy.config import ProxyConfig, PushModes
from shoal.proxy.custody import DurableCustody
from shoal.proxy.neighbours import Neighbours
from shoal.proxy.prefetch import Prefetch
from shoal.proxy.readiness import Readiness
from shoal.proxy.service import ProxyService
from shoal.proxy.uploads import Uploads
from shoal.registry.ports import Chunk
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.store.uploads import UploadSessions
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Rejected, Unreachable
from shoal.web.serving import Listener, listening
from tests.unit.registry_fakes import QUORUM, MemoryIndex, MemoryOrigins

FAST, CARELESS, SAFE = "fast/app", "careless/app", "safe/app"
CONTENT = bytes(range(256)) * 20
DIGEST = Digest.of(CONTENT)
CONFIG = b"{}"


@dataclass
class Proxy:
    """A proxy that is running, and what it stands on."""

    folder: Path
    http: HttpClient
    neighbours: list[str] = field(default_factory=list)
    origins: MemoryOrigins = field(default_factory=MemoryOrigins)
    index: MemoryIndex = field(init=False)
    running: bool = False

    def __post_init__(self) -> None:
        self.index = MemoryIndex(self.origins)

    async def start(self) -> None:
        self.running = True
        self.config = ProxyConfig.model_validate(
            {
                "data_dir": self.folder,
                "origins": {"hosts": ["a:1", "b:1", "c:1"], "write_quorum": QUORUM},
                "build_index": {"hosts": ["i:1"]},
                "push": [
                    {"pattern": "^fast/", "mode": "write_back"},
                    {"pattern": "^careless/", "mode": "write_back", "await_delivery": False},
                ],
                "delivery": {"retry": {"initial": 0.01, "cap": 0.05}},
            }
        )
        self.custody = await DurableCustody.start(self.config, self.origins)
        self.service = ProxyService(
            origins=self.origins,
            index=self.index,
            uploads=Uploads(
                UploadSessions(self.folder / "uploads"), idle_timeout=10, name="proxy:1"
            ),
            write_quorum=QUORUM,
            modes=PushModes(self.config.push),
            custody=self.custody,
            neighbours=Neighbours(self.http, self.neighbours),
            tag_time=0.1,
        )

    async def stop(self) -> None:
        if self.running:
            self.running = False
            await self.custody.stop(5)

    def application(self) -> web.Application:
        ring = OriginsConfig(hosts=["127.0.0.1:1"], write_quorum=1, replicas=1)
        index = BuildIndexClient(self.http, HostsConfig(hosts=["127.0.0.1:1"]))
        readiness = Readiness(OriginCluster(self.http, ring), index, self.custody)
        prefetch = Prefetch(self.service, self.origins, self.custody)
        return proxy_application(self.service, self.custody, prefetch, readiness, self.config)

    async def push(self, name: str, *contents: bytes) -> None:
        for content in contents:
            upload = await self.service.start_upload(name)
            chunk = Chunk(_body(content))
            await self.service.finish(name, upload, Digest.of(content), chunk, soon())

    async def tag(self, name: str, body: bytes, deadline: Deadline | None = None) -> Digest:
        deadline = deadline or soon()
        return (await self.service.put_manifest(name, "v1", body, None, deadline)).digest

    def files(self) -> list[str]:
        return [path.name for path in self.folder.rglob("*") if len(path.name) >= 32]


async def _body(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


@pytest.fixture
async def proxy(tmp_path: Path, http: HttpClient) -> AsyncIterator[Proxy]:
    running = Proxy(tmp_path / "proxy", http)
    await running.start()
    yield running
    await running.stop()


def soon() -> Deadline:
    return Deadline.after(20)


def image(*layers: bytes) -> bytes:
    def entry(kind: str, content: bytes) -> dict[str, object]:
        return {"mediaType": kind, "digest": str(Digest.of(content)), "size": len(content)}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(OCI_CONFIG, CONFIG),
        "layers": [entry(OCI_LAYER, layer) for layer in layers],
    }
    return json.dumps(document).encode()


async def test_write_back_acknowledges_without_any_origin(proxy: Proxy) -> None:
    proxy.origins.failure = "down"
    with pytest.raises(Unavailable):
        await proxy.push(SAFE, CONTENT)
    await proxy.push(FAST, CONTENT)
    assert await proxy.service.stat_blob(FAST, DIGEST, soon()) == len(CONTENT)
    assert await proxy.service.mount("fast/other", DIGEST, FAST, soon())
    assert await proxy.service.mount("fast/third", DIGEST, None, soon())
    assert not await proxy.service.mount(SAFE, DIGEST, FAST, soon())
    await (await proxy.service.open_blob(FAST, DIGEST, soon())).close()
    await proxy.push(FAST, CONTENT)


async def test_a_wrong_digest_is_refused_before_anything_is_kept(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(FAST)
    chunk = Chunk(_body(CONTENT))
    with pytest.raises(DigestInvalid):
        await proxy.service.finish(FAST, upload, Digest.of(b"other"), chunk, soon())
    assert proxy.files() == []


async def test_a_put_repeated_after_its_answer_was_lost_is_acknowledged_again(proxy: Proxy) -> None:
    proxy.origins.failure = "down"
    upload = await proxy.service.start_upload(FAST)
    await proxy.service.finish(FAST, upload, DIGEST, Chunk(_body(CONTENT)), soon())
    await proxy.service.finish(FAST, upload, DIGEST, None, soon())


async def test_a_blob_that_cannot_be_linked_is_pushed_anew(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise Unreachable("PUT", "http://index-1:5003/", "refused")

    proxy.origins.failure = "down"
    upload = await proxy.service.start_upload(FAST)
    with monkeypatch.context() as patch:
        patch.setattr(proxy.index, "link_blob", refused)
        with pytest.raises(Unavailable, match=r"index-1:5003.*push it again"):
            await proxy.service.finish(FAST, upload, DIGEST, Chunk(_body(CONTENT)), soon())
    with pytest.raises(BlobUnknown):
        await proxy.service.stat_blob(FAST, DIGEST, soon())
    with pytest.raises(BlobUploadUnknown):
        await proxy.service.finish(FAST, upload, DIGEST, None, soon())
    await proxy.push(FAST, CONTENT)
    assert await proxy.service.stat_blob(FAST, DIGEST, soon()) == len(CONTENT)


@pytest.mark.parametrize("name", [FAST, SAFE])
async def test_a_manifest_waits_for_what_is_still_to_be_delivered(proxy: Proxy, name: str) -> None:
    proxy.origins.failure = "down"
    await proxy.push(FAST, CONTENT, CONFIG)
    for digest in (DIGEST, Digest.of(CONFIG)):
        await proxy.index.mount_blob(name, digest, FAST, deadline=soon())
    tagging = asyncio.create_task(proxy.tag(name, image(CONTENT)))
    await asyncio.sleep(0)
    assert proxy.index.given == []
    proxy.origins.failure = None
    await tagging
    assert proxy.index.given == [image(CONTENT)]
    assert set(proxy.origins.blobs) >= {DIGEST, Digest.of(CONFIG)}
    await proxy.stop()
    assert proxy.files() == []


async def test_an_index_waits_for_its_children(proxy: Proxy) -> None:
    proxy.origins.failure = "down"
    child = image(CONTENT)
    await proxy.push(FAST, child)
    entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(child)), "size": len(child)}
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    with pytest.raises(Unavailable, match=str(Digest.of(child))):
        await proxy.tag(FAST, body, Deadline.after(0.3))


async def test_at_the_deadline_it_says_what_still_waits_and_when_to_come_back(proxy: Proxy) -> None:
    proxy.origins.failure = "origin-1:5002 refused"
    await proxy.push(FAST, CONTENT)
    with pytest.raises(Unavailable, match="still to be delivered") as refused:
        await proxy.tag(FAST, image(CONTENT), Deadline.after(0.4))
    assert refused.value.detail == {"waiting": [str(DIGEST)]}
    assert int(refused.value.headers["Retry-After"]) > 0
    assert proxy.index.given == []


async def test_what_nobody_pushed_is_missing_at_once(proxy: Proxy) -> None:
    with pytest.raises(ManifestBlobUnknown):
        await proxy.tag(FAST, image(os.urandom(8)))


async def test_without_await_delivery_the_tag_does_not_wait_and_has_no_body(proxy: Proxy) -> None:
    proxy.origins.gate = asyncio.Event()
    await proxy.push(CARELESS, CONTENT, CONFIG)
    await proxy.origins.uploading.wait()
    # The origins take the manifest before they take the layers.
    proxy.origins.gate = None
    with pytest.raises(ManifestBlobUnknown):
        await proxy.tag(CARELESS, image(CONTENT, b"never pushed"))
    assert proxy.index.given == [None]


async def test_a_full_disk_refuses_the_blob_and_keeps_nothing(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("shoal.store.blobs.BlobStore.adopt", "shoal.store.writer.BlobWriter.append"):
        with monkeypatch.context() as patch:
            patch.setattr(place, no_room)
            with pytest.raises(Unavailable, match="No space left on device"):
                await proxy.push(FAST, CONTENT)
        assert proxy.files() == []


async def test_what_waits_at_another_proxy_is_waited_for(
    tmp_path: Path, http: HttpClient, proxy: Proxy
) -> None:
    async with listening([Listener(proxy.application(), "127.0.0.1:0")], grace=1) as addresses:
        second = Proxy(tmp_path / "second", http, list(addresses), proxy.origins)
        second.index = proxy.index
        await second.start()
        proxy.origins.failure = "down"
        await proxy.push(FAST, CONTENT)
        await second.push(FAST, CONFIG)
        with pytest.raises(Unavailable, match=addresses[0]) as late:
            await second.tag(FAST, image(CONTENT), Deadline.after(1.5))
        assert late.value.detail == {"waiting": sorted(map(str, [DIGEST, Digest.of(CONFIG)]))}
        tagging = asyncio.create_task(second.tag(FAST, image(CONTENT)))
        await asyncio.sleep(0)
        proxy.origins.failure = None
        await tagging
        with pytest.raises(ManifestBlobUnknown):
            await second.tag(FAST, image(b"never pushed"))
        url = f"http://{addresses[0]}/internal/deliver"
        with pytest.raises(Rejected) as refused:
            await http.call("POST", url, json={"digests": ["x"]}, deadline=soon())
        assert refused.value.code == "DIGEST_INVALID"
    # It cannot be asked any more: so nobody knows.
    with pytest.raises(Unavailable, match=addresses[0]):
        await second.tag(FAST, image(b"never pushed"))
    await second.stop()
