# SPDX-License-Identifier: Apache-2.0
"""Images to push: the same seed gives the same bytes, hence the same digests, on every machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tests.missing_clients import find_command

HOST_ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(
    platform.machine(), platform.machine()
)
BOTH: Final = ("amd64", "arm64")
"""What a multi-platform index of these tests holds."""


@dataclass(frozen=True)
class MediaTypes:
    """One of the two families that clients speak."""

    index: str
    manifest: str
    config: str
    layer: str


OCI: Final = MediaTypes(
    index="application/vnd.oci.image.index.v1+json",
    manifest="application/vnd.oci.image.manifest.v1+json",
    config="application/vnd.oci.image.config.v1+json",
    layer="application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER: Final = MediaTypes(
    index="application/vnd.docker.distribution.manifest.list.v2+json",
    manifest="application/vnd.docker.distribution.manifest.v2+json",
    config="application/vnd.docker.container.image.v1+json",
    layer="application/vnd.docker.image.rootfs.diff.tar.gzip",
)


@dataclass(frozen=True)
class Content:
    """Bytes with their media type."""

    media_type: str
    data: bytes

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the bytes."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def hex(self) -> str:
        """The digest without its algorithm."""
        return self.digest.partition(":")[2]

    def descriptor(self, **more: object) -> dict[str, Any]:
        """How a manifest refers to it."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.data),
            **more,
        }


@dataclass(frozen=True)
class PlatformImage:
    """The image of one platform."""

    architecture: str
    manifest: Content
    config: Content
    layers: tuple[Content, ...]
    diff_ids: tuple[str, ...]


@dataclass(frozen=True)
class Image:
    """What one tag names: an image of one platform, or an index of several."""

    top: Content
    platforms: tuple[PlatformImage, ...]
    greeting: str
    """What the image prints when it runs."""

    @property
    def digest(self) -> str:
        """What the tag resolves to when a client pushes the image as it is."""
        return self.top.digest

    @property
    def host(self) -> PlatformImage:
        """The image for the machine that the tests run on."""
        return next(p for p in self.platforms if p.architecture == HOST_ARCHITECTURE)

    def blobs(self) -> Iterator[Content]:
        """Configs and layers."""
        for image in self.platforms:
            yield image.config
            yield from image.layers

    def write_oci(self, folder: Path, tag: str) -> Path:
        """Write an OCI image layout."""
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        manifests = [image.manifest for image in self.platforms]
        for content in (self.top, *manifests, *self.blobs()):
            (blobs / content.hex).write_bytes(content.data)
        (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
        named = self.top.descriptor(annotations={"org.opencontainers.image.ref.name": tag})
        (folder / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [named]}))
        return folder

    def write_oci_archive(self, folder: Path, tag: str) -> Path:
        """Write an OCI image layout as one tar file, for `ctr images import`."""
        layout = self.write_oci(folder / "layout", tag)
        archive = folder / "oci.tar"
        with tarfile.open(archive, "w") as tar:
            for path in sorted(p for p in layout.rglob("*") if p.is_file()):
                tar.add(path, str(path.relative_to(layout)))
        return archive

    def write_dir(self, folder: Path) -> Path:
        """Write skopeo's `dir:` form, which keeps manifests of any media type as they are."""
        folder.mkdir(parents=True)
        (folder / "version").write_text("Directory Transport Version: 1.1\n")
        (folder / "manifest.json").write_bytes(self.top.data)
        if self.top is not self.platforms[0].manifest:
            for image in self.platforms:
                (folder / f"{image.manifest.hex}.manifest.json").write_bytes(image.manifest.data)
        for content in self.blobs():
            (folder / content.hex).write_bytes(content.data)
        return folder

    def write_docker_archive(self, folder: Path, reference: str) -> Path:
        """Write what `docker load` reads, for this machine's platform."""
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / "docker.tar"
        image = self.host
        names = [f"{layer.hex}.tar.gz" for layer in image.layers]
        config_name = f"{image.config.hex}.json"
        index = [{"Config": config_name, "RepoTags": [reference], "Layers": names}]
        with tarfile.open(archive, "w") as tar:
            for name, layer in zip(names, image.layers, strict=True):
                _add(tar, name, layer.data)
            _add(tar, config_name, image.config.data)
            _add(tar, "manifest.json", _json(index))
        return archive


def build(
    seed: str,
    *,
    platforms: Sequence[str] = (HOST_ARCHITECTURE,),
    types: MediaTypes = OCI,
    layer_size: int = 200_000,
) -> Image:
    """Make an image of three layers; the last two hold `layer_size` bytes that do not compress.

    The first layer holds a static busybox when the machine has one, so the image runs.
    """
    greeting = f"shoal {seed}"
    images = tuple(_platform_image(seed, arch, greeting, types, layer_size) for arch in platforms)
    if len(images) == 1:
        return Image(images[0].manifest, images, greeting)
    manifests = [
        image.manifest.descriptor(platform={"architecture": image.architecture, "os": "linux"})
        for image in images
    ]
    index = {"schemaVersion": 2, "mediaType": types.index, "manifests": manifests}
    return Image(Content(types.index, _json(index)), images, greeting)


def _platform_image(
    seed: str, architecture: str, greeting: str, types: MediaTypes, layer_size: int
) -> PlatformImage:
    noise = random.Random(f"{seed}/{architecture}")
    tars = (
        _tar({"bin/busybox": _busybox(), "greeting": f"{greeting}\n".encode()}),
        _tar({"data/first": noise.randbytes(layer_size)}),
        _tar({"data/second": noise.randbytes(layer_size), "data/empty": b""}),
    )
    layers = tuple(Content(types.layer, gzip.compress(tar, 1, mtime=0)) for tar in tars)
    diff_ids = tuple(f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars)
    config = Content(
        types.config,
        _json(
            {
                "architecture": architecture,
                "os": "linux",
                "created": "2024-01-01T00:00:00Z",
                "config": {"Cmd": ["/bin/busybox", "cat", "/greeting"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
                "history": [{"created": "2024-01-01T00:00:00Z"} for _ in diff_ids],
            }
        ),
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": types.manifest,
        "config": config.descriptor(),
        "layers": [layer.descriptor() for layer in layers],
    }
    content = Content(types.manifest, _json(manifest))
    return PlatformImage(architecture, content, config, layers, diff_ids)


def _busybox() -> bytes:
    path = find_command("busybox")
    return Path(path).read_bytes() if path is not None else b"no busybox here\n"


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            _add(tar, name, data)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o755
    tar.addfile(info, io.BytesIO(data))


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
