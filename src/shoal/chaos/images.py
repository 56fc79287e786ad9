# SPDX-License-Identifier: Apache-2.0
"""Images to push while things break: mostly small, some of several pieces, none twice the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST

_SIZES = ((1 << 10, 64 << 10), (256 << 10, 1 << 20), (1 << 20, 6 << 20))
_SHARES = (12, 3, 1)


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes and their digest."""

    digest: Digest
    body: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """What one push sends: the blobs, and then the manifest."""

    blobs: tuple[Blob, ...]
    manifest: Blob


def image(seed: int, number: int) -> Image:
    """The image of this number: one to three layers, the same bytes for the same seed. Hashes."""
    random = Random(f"{seed}/{number}")
    layers = [_layer(random) for _ in range(random.randint(1, 3))]
    config = _blob(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(config, OCI_CONFIG),
        "layers": [_descriptor(layer, OCI_LAYER) for layer in layers],
    }
    return Image((*layers, config), _blob(manifest))


def _layer(random: Random) -> Blob:
    [bounds] = random.choices(_SIZES, _SHARES)
    body = random.randbytes(random.randint(*bounds))
    return Blob(Digest.of(body), body)


def _blob(document: dict[str, object]) -> Blob:
    body = json.dumps(document, separators=(",", ":")).encode()
    return Blob(Digest.of(body), body)


def _descriptor(blob: Blob, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(blob.digest), "size": len(blob.body)}
