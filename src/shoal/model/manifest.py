# SPDX-License-Identifier: Apache-2.0
"""Manifests and what they reference (OCI image-spec manifest.md and image-index.md).

A manifest is kept byte for byte; this module only reads it. Type, header and shape must agree, so
that no document can be taken for a manifest by one reader and for an index by another
(CVE-2021-41190).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    FOREIGN_LAYERS,
    IMAGE_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
)

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""The size that distribution-spec asks every registry to take, and the most that Shoal takes."""

MAX_ENTRIES = 10_000
"""Layers of an image, or children of an index."""


class InvalidManifest(ValueError):
    """The document is not a manifest that Shoal can keep."""


IndexChildren = Literal["required", "present", "ignore"]
"""What an index needs of its children: ``required``, all of them and all that they need;
``present``, that those that are here are complete (the others live elsewhere: a sparse index);
``ignore``, nothing."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content: media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    foreign: bool = False
    """The content may live elsewhere (``urls``, or a non-distributable layer type)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed image manifest or index."""

    media_type: str
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None

    @property
    def is_index(self) -> bool:
        """Whether this lists other manifests."""
        return self.media_type in INDEX_TYPES

    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers that must be present for the image to be usable."""
        config = () if self.config is None else (self.config,)
        return config + tuple(layer for layer in self.layers if not layer.foreign)


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    urls: list[str] = []


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int
    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Descriptor | None = None
    fs_layers: Any = None


_DECODER = msgspec.json.Decoder(_Document)


def parse_manifest(body: bytes, content_type: str | None = None) -> Manifest:
    """Read a manifest.

    `content_type` is the header it came with, if one was sent; it must then agree with the
    document. Raises `InvalidManifest` with a message fit for the client.
    """
    if len(body) > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, got {len(body)}")
    try:
        document = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidManifest(f"not a manifest: {error}") from error
    media_type = _media_type(document, content_type)
    if media_type in INDEX_TYPES:
        return Manifest(
            media_type,
            children=_descriptors("manifests", document.manifests or []),
            subject=_optional("subject", document.subject),
        )
    return Manifest(
        media_type,
        config=_optional("config", document.config),
        layers=_descriptors("layers", document.layers or []),
        subject=_optional("subject", document.subject),
    )


def _media_type(document: _Document, content_type: str | None) -> str:
    if document.fs_layers is not None or document.schema_version == 1:
        raise InvalidManifest("Docker schema 1 is not supported: push with schema 2 or OCI types")
    if document.schema_version != 2:
        raise InvalidManifest(f"schemaVersion must be 2, got {document.schema_version}")
    if document.manifests is not None and (
        document.layers is not None or document.config is not None
    ):
        raise InvalidManifest("a document is a manifest (config, layers) or an index, not both")
    header = (content_type or "").partition(";")[0].strip().lower()
    declared = document.media_type or (header if header in MANIFEST_TYPES else "")
    shape = OCI_INDEX if document.manifests is not None else OCI_MANIFEST
    media_type = declared or shape
    if media_type not in MANIFEST_TYPES:
        raise InvalidManifest(
            f"media type {media_type!r} is not one of {', '.join(sorted(MANIFEST_TYPES))}"
        )
    if header in MANIFEST_TYPES and header != media_type:
        raise InvalidManifest(f"Content-Type is {header} but mediaType is {media_type}")
    if header and header not in MANIFEST_TYPES and header not in _NEUTRAL_TYPES:
        raise InvalidManifest(f"Content-Type {header} is not that of a manifest")
    if (media_type in INDEX_TYPES) != (document.manifests is not None):
        raise InvalidManifest(f"the document does not have the shape of {media_type}")
    if media_type in IMAGE_TYPES and document.config is None:
        raise InvalidManifest("an image manifest needs a config descriptor")
    if media_type == DOCKER_MANIFEST and document.layers is None:
        raise InvalidManifest("an image manifest needs layers")
    return media_type


_NEUTRAL_TYPES = frozenset({"application/json", "application/octet-stream"})


def _descriptors(field: str, raw: list[_Descriptor]) -> tuple[Descriptor, ...]:
    if len(raw) > MAX_ENTRIES:
        raise InvalidManifest(f"{field} has {len(raw)} entries; at most {MAX_ENTRIES} are taken")
    return tuple(_descriptor(f"{field}[{i}]", entry) for i, entry in enumerate(raw))


def _optional(field: str, raw: _Descriptor | None) -> Descriptor | None:
    return None if raw is None else _descriptor(field, raw)


def _descriptor(field: str, raw: _Descriptor) -> Descriptor:
    try:
        digest = Digest.parse(raw.digest)
    except InvalidDigest as error:
        raise InvalidManifest(f"{field}: {error}") from error
    if raw.size < 0:
        raise InvalidManifest(f"{field}: size is negative ({raw.size})")
    foreign = bool(raw.urls) or raw.media_type.startswith(FOREIGN_LAYERS)
    return Descriptor(raw.media_type, digest, raw.size, foreign)


__all__ = [
    "DOCKER_LIST",
    "MAX_ENTRIES",
    "MAX_MANIFEST_BYTES",
    "Descriptor",
    "InvalidManifest",
    "Manifest",
    "parse_manifest",
]
