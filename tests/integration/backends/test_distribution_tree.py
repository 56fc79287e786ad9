# SPDX-License-Identifier: Apache-2.0
"""A folder that distribution's registry wrote is served as it is, and the other way round."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.backend.base import BlobName, Blobs, LinkName, Repositories, TagName, TagsOf
from shoal.backend.config import LocalBackendConfig
from shoal.backend.local import LocalBackend
from shoal.model.digest import Digest
from tests.acceptance.clients import Reference, Skopeo
from tests.acceptance.images import Image, build
from tests.acceptance.sandbox import Sandbox
from tests.integration.backends.contract import deadline, every_page, read
from tests.missing_clients import find_command

CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""

pytestmark = pytest.mark.client("docker-registry", "skopeo")


@contextlib.contextmanager
def distribution(folder: Path, logs: Path) -> Iterator[str]:
    """Run distribution's registry on a folder; give its URL."""
    command = find_command("docker-registry")
    assert command is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    config = logs / "registry.yml"
    config.write_text(CONFIG.format(folder=folder, port=port))
    with (logs / "registry.log").open("ab") as log:
        process = subprocess.Popen([command, "serve", str(config)], stdout=log, stderr=log)
    try:
        ends = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            assert process.poll() is None, (logs / "registry.log").read_text()
            assert time.monotonic() < ends, "docker-registry is not ready after 20 s"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def skopeo(tmp_path_factory: pytest.TempPathFactory) -> Skopeo:
    return Skopeo(Sandbox(tmp_path_factory.mktemp("skopeo")))


def backend(folder: Path) -> LocalBackend:
    config = LocalBackendConfig(kind="local", path=folder)
    return LocalBackend(config.path, config.layout, timeout=10)


async def test_what_distribution_stored_is_read(tmp_path: Path, skopeo: Skopeo) -> None:
    folder = tmp_path / "storage"
    images = {tag: build(f"distribution {tag}", layer_size=50_000) for tag in ("1.0", "1.0-a")}
    with distribution(folder, tmp_path) as url:
        for tag, image in images.items():
            assert skopeo.push(image, Reference(url, "team/app", tag)) == image.digest
        # The tag moves: distribution keeps the digest that it had before beside it.
        skopeo.push(images["1.0-a"], Reference(url, "team/app", "1.0"))
        skopeo.push(images["1.0"], Reference(url, "other", "latest"))

    storage = backend(folder)
    assert await every_page(storage, Repositories(), 1) == ["other", "team/app"]
    assert await every_page(storage, TagsOf("team/app"), 1) == ["1.0", "1.0-a"]
    digest = Digest.parse((await read(storage, TagName("team/app", "1.0"))).decode())
    assert str(digest) == images["1.0-a"].digest
    manifest = images["1.0-a"].top
    assert await read(storage, BlobName("team/app", digest)) == manifest.data
    link = LinkName("team/app", digest, "manifest")
    assert await read(storage, link) == str(digest).encode()
    for content in images["1.0-a"].blobs():
        name = BlobName("team/app", Digest.parse(content.digest))
        assert await storage.stat(name, deadline=deadline()) == len(content.data)
        assert await read(storage, name) == content.data
        link = LinkName("team/app", name.digest, "blob")
        assert await read(storage, link) == content.digest.encode()
    stored = {image.digest for image in images.values()} | {
        content.digest for image in images.values() for content in image.blobs()
    }
    assert await every_page(storage, Blobs("team/app"), 3) == sorted(stored)


async def test_what_a_backend_stored_is_served_by_distribution(
    tmp_path: Path, skopeo: Skopeo
) -> None:
    folder = tmp_path / "storage"
    image = build("for distribution", layer_size=50_000)
    await _store(backend(folder), image, "team/app", "v1")
    with distribution(folder, tmp_path) as url:
        reference = Reference(url, "team/app", "v1")
        pulled = skopeo.pull(reference)
        assert (pulled.digest, pulled.diff_ids) == (image.digest, image.host.diff_ids)
        assert skopeo.tags(reference) == ["v1"]
        await backend(folder).delete(TagName("team/app", "v1"), deadline=deadline())
        assert await every_page(backend(folder), TagsOf("team/app"), 5) == []


async def _store(storage: LocalBackend, image: Image, repository: str, tag: str) -> None:
    until = deadline()
    for content in (*image.blobs(), image.top):
        digest = Digest.parse(content.digest)
        await storage.put(BlobName(repository, digest), content.data, deadline=until)
        link = LinkName(repository, digest, "manifest" if content is image.top else "blob")
        await storage.put(link, content.digest.encode(), deadline=until)
    await storage.put(TagName(repository, tag), image.digest.encode(), deadline=until)
