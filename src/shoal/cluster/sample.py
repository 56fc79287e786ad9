# SPDX-License-Identifier: Apache-2.0
"""A sample image: tar layers, each with a file of random bytes that nobody can compress."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST

_STEP = 8 << 20
_BLOCK = 512
_END_OF_ARCHIVE = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer on disk."""

    path: Path
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class SampleImage:
    """An OCI image: layers on disk, config and manifest in memory."""

    layers: tuple[Layer, ...]
    config: bytes
    manifest: bytes

    @property
    def size(self) -> int:
        """Bytes of the layers together."""
        return sum(layer.size for layer in self.layers)


def make_layer(path: Path, size: int) -> Layer:
    """Write a tar file with one file of `size` random bytes."""
    hasher = hashlib.sha256()
    with path.open("wb") as file:

        def put(data: bytes) -> None:
            hasher.update(data)
            file.write(data)

        entry = tarfile.TarInfo(f"random-{path.stem}")
        entry.size = size
        put(entry.tobuf(tarfile.USTAR_FORMAT))
        for start in range(0, size, _STEP):
            put(os.urandom(min(_STEP, size - start)))
        put(bytes(-size % _BLOCK) + _END_OF_ARCHIVE)
        return Layer(path, Digest("sha256", hasher.hexdigest()), file.tell())


def make_image(layers: tuple[Layer, ...]) -> SampleImage:
    """Put the config and the manifest around layers."""
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(OCI_CONFIG, Digest.of(config), len(config)),
            "layers": [_descriptor(OCI_LAYER, layer.digest, layer.size) for layer in layers],
        }
    )
    return SampleImage(layers, config, manifest)


def layer_sizes(total: int, layers: int) -> list[int]:
    """Sizes of so many layers that make up `total` bytes; the first one takes the remainder."""
    each, rest = divmod(total, layers)
    return [each + rest, *[each] * (layers - 1)]


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
