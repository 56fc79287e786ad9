# SPDX-License-Identifier: Apache-2.0
"""Manifests and what they reference (OCI image-spec manifest.md and image-index.md).

A manifest is kept byte for byte; this module only reads it. Type, header and shape must agree, so
that no document can be taken for a manifest by one reader and for an index by another
(CVE-2021-41190).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.media_types import (
    DOCKER_MANIFEST,
    FOREIGN_LAYERS,
    IMAGE_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
)
from shoal.model.unambiguous import check_unambiguous

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""The size that distribution-spec asks every registry to take, and the most that Shoal takes."""

MAX_ENTRIES = 10_000
"""Layers of an image, or children of an index."""

MAX_BRACKETS = 100_000
"""Most objects and lists in a manifest. They cost far more to read than their bytes let expect: a
million empty lists would stop all else for seconds. Counted by their brackets, also in texts."""

MAX_SIZE = 2**63 - 1
"""The largest size of a descriptor: what clients keep in a signed 64-bit integer."""


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
    artifact_type: str = ""
    """What kind of thing it is: ``artifactType``, or an image's type of config."""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_index(self) -> bool:
        """Whether this lists other manifests."""
        return self.media_type in INDEX_TYPES

    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers that must be present for the image to be usable."""
        config = () if self.config is None else (self.config,)
        return config + tuple(layer for layer in self.layers if not layer.foreign)

    def warnings(self) -> tuple[str, ...]:
        """What whoever pushes this should know: which of it is not kept here."""
        foreign = [layer.digest for layer in self.layers if layer.foreign]
        if not foreign:
            return ()
        named = ", ".join(map(str, foreign[:4])) + (" ..." if foreign[4:] else "")
        count = f"{len(foreign)} of {len(self.layers)} layers"
        return (f"{count} live elsewhere and need not be here: {named}",)

    def references(self) -> tuple[Digest, ...]:
        """Digests of config, layers that are not foreign, and children; each once, in order."""
        return tuple(dict.fromkeys(entry.digest for entry in (*self.blobs(), *self.children)))


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """What is known of a stored manifest without its bytes."""

    digest: Digest
    media_type: str
    size: int
    """Bytes."""


LARGE_REFERRERS = 2 * 1024 * 1024
"""Characters of annotations at which a list of referrers is given in parts."""


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that has another one as its subject, as the referrers list describes it."""

    digest: Digest
    media_type: str
    size: int
    """Bytes."""
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def characters(self) -> int:
        """How many characters its annotations have, which may be as many as fit a manifest."""
        return sum(len(key) + len(text) for key, text in self.annotations.items())


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    urls: list[str] | None = None
    data: bytes | None = None


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Descriptor | None = None
    annotations: dict[str, str] | None = None
    fs_layers: Any = None


_DECODER = msgspec.json.Decoder(_Document)
_NESTED = ("config", "layers", "manifests", "subject")
_FIELDS = frozenset(_Document.__struct_encode_fields__ + _Descriptor.__struct_encode_fields__)
_BOM = b"\xef\xbb\xbf"


def parse_manifest(body: bytes, content_type: str | None = None) -> Manifest:
    """Read a manifest.

    `content_type` is the header it came with, if one was sent; it must then agree with the
    document. Raises `InvalidManifest` with a message fit for the client.
    """
    if len(body) > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, got {len(body)}")
    if body.startswith(_BOM):
        raise InvalidManifest("a manifest is JSON in UTF-8 without a byte order mark")
    brackets = body.count(b"{") + body.count(b"[")
    if brackets > MAX_BRACKETS:
        raise InvalidManifest(
            f"a manifest has at most {MAX_BRACKETS} opening brackets and braces, got {brackets}"
        )
    try:
        document = _DECODER.decode(body)
        check_unambiguous(body, _FIELDS, _NESTED)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidManifest(f"not a manifest: {error}") from error
    media_type = _media_type(document, content_type)
    read = _Descriptors()
    subject = read.optional("subject", document.subject)
    annotations = document.annotations or {}
    if media_type in INDEX_TYPES:
        return Manifest(
            media_type,
            children=read.entries("manifests", document.manifests or []),
            subject=subject,
            artifact_type=document.artifact_type,
            annotations=annotations,
        )
    config = read.optional("config", document.config)
    return Manifest(
        media_type,
        config=config,
        layers=read.entries("layers", document.layers or []),
        subject=subject,
        artifact_type=document.artifact_type or (config.media_type if config else ""),
        annotations=annotations,
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


class _Descriptors:
    """Reads the descriptors of one document, which must not contradict each other."""

    def __init__(self) -> None:
        self._sizes: dict[Digest, int] = {}

    def entries(self, field: str, raw: list[_Descriptor]) -> tuple[Descriptor, ...]:
        if len(raw) > MAX_ENTRIES:
            raise InvalidManifest(
                f"{field} has {len(raw)} entries; at most {MAX_ENTRIES} are taken"
            )
        return tuple(self._read(f"{field}[{i}]", entry) for i, entry in enumerate(raw))

    def optional(self, field: str, raw: _Descriptor | None) -> Descriptor | None:
        return None if raw is None else self._read(field, raw)

    def _read(self, field: str, raw: _Descriptor) -> Descriptor:
        try:
            digest = Digest.parse(raw.digest)
        except InvalidDigest as error:
            raise InvalidManifest(f"{field}: {error}") from error
        size = raw.size
        if not 0 <= size <= MAX_SIZE:
            what = "negative" if size < 0 else f"more than {MAX_SIZE}"
            raise InvalidManifest(f"{field}: size is {what} ({str(size)[:40]})")
        if self._sizes.setdefault(digest, size) != size:
            raise InvalidManifest(
                f"{field}: {digest} has {size} bytes here and {self._sizes[digest]} elsewhere"
            )
        if raw.data is not None:
            _check_data(field, raw.data, digest, size)
        foreign = bool(raw.urls) or raw.media_type.startswith(FOREIGN_LAYERS)
        return Descriptor(raw.media_type, digest, size, foreign)


def _check_data(field: str, data: bytes, digest: Digest, size: int) -> None:
    """Embedded content must be what its descriptor says (image-spec descriptor.md, "data")."""
    if len(data) != size:
        raise InvalidManifest(f"{field}: data has {len(data)} bytes, and size says {size}")
    found = Digest.of(data, digest.algorithm)
    if found != digest:
        raise InvalidManifest(f"{field}: data has the digest {found}, not {digest}")
