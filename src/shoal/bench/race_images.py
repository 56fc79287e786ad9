# SPDX-License-Identifier: Apache-2.0
"""Images to push in thousands: small, and the same bytes again for the same seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST

MULTI_PLATFORM_EVERY = 4
"""Each fourth image is an index of two platforms."""

BASE_LAYERS = 8
"""Layers that many images have in common; a client finds them there and sends them once."""

_LAYERS = (1, 3)
_LAYER_BYTES = (1024, 8192)
_PLATFORMS = ("amd64", "arm64")


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes with their digest and media type."""

    digest: Digest
    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Image:
    """What one push sends, in the order in which it must be there."""

    blobs: tuple[Content, ...]
    children: tuple[Content, ...]
    root: Content
    """The manifest or index that is tagged."""

    def contents(self) -> Iterator[Content]:
        """All of it."""
        yield from self.blobs
        yield from self.manifests()

    def manifests(self) -> Iterator[Content]:
        """The manifests, the tagged one last."""
        yield from self.children
        yield self.root


def images(seed: int, count: int) -> Iterator[Image]:
    """Make `count` images, each of one to three layers of its own on a common one."""
    for number in range(count):
        random = Random(f"{seed}/{number}")
        if (number + 1) % MULTI_PLATFORM_EVERY:
            blobs, manifest = _platform(random, seed, "amd64")
            yield Image(tuple(blobs), (), manifest)
            continue
        platforms = [_platform(random, seed, name) for name in _PLATFORMS]
        every = {blob.digest: blob for blobs, _ in platforms for blob in blobs}
        children = [manifest for _, manifest in platforms]
        listed = [
            _descriptor(child) | {"platform": {"os": "linux", "architecture": name}}
            for child, name in zip(children, _PLATFORMS, strict=True)
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        yield Image(tuple(every.values()), tuple(children), _document(index, OCI_INDEX))


def _platform(random: Random, seed: int, architecture: str) -> tuple[list[Content], Content]:
    base = Random(f"{seed}/base/{random.randrange(BASE_LAYERS)}")
    layers = [_layer(base), *(_layer(random) for _ in range(random.randint(*_LAYERS)))]
    config = _document(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        },
        OCI_CONFIG,
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(config),
        "layers": list(map(_descriptor, layers)),
    }
    return [*layers, config], _document(manifest, OCI_MANIFEST)


def _layer(random: Random) -> Content:
    return _content(random.randbytes(random.randint(*_LAYER_BYTES)), OCI_LAYER)


def _document(document: dict[str, object], media_type: str) -> Content:
    return _content(json.dumps(document, separators=(",", ":")).encode(), media_type)


def _content(body: bytes, media_type: str) -> Content:
    return Content(Digest.of(body), body, media_type)


def _descriptor(content: Content) -> dict[str, object]:
    return {
        "mediaType": content.media_type,
        "digest": str(content.digest),
        "size": len(content.body),
    }


def manifest_digests(pushed: Iterable[Image]) -> frozenset[str]:
    """The digests of all manifests and indexes."""
    return frozenset(str(manifest.digest) for image in pushed for manifest in image.manifests())
