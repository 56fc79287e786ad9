# SPDX-License-Identifier: Apache-2.0
"""An image of many tiny layers, and how clients push it: a few connections, each kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from shoal.bench.client import RegistryConnection
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST

AT_ONCE = 6
"""Blobs that are sent at the same time: what skopeo and podman do."""

TAGS_AT_ONCE = 50
"""Tags that one PUT gives a manifest."""

_LAYER_BYTES = 2048

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TinyImage:
    """Blobs by digest, and the manifest that names them."""

    blobs: dict[str, bytes]
    manifest: bytes
    digest: str
    media_type: str = OCI_MANIFEST


def tiny_image(layers: int) -> TinyImage:
    """Make an image of so many layers of random bytes: another one each time."""
    contents = [os.urandom(_LAYER_BYTES) for _ in range(layers)]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
        | {"config": {"Labels": {"salt": os.urandom(16).hex()}}}
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(OCI_CONFIG, config),
            "layers": [_descriptor(OCI_LAYER, content) for content in contents],
        }
    ).encode()
    blobs = {digest_of(content): content for content in (config, *contents)}
    return TinyImage(blobs, manifest, digest_of(manifest))


def digest_of(content: bytes) -> str:
    """The SHA-256 digest, as the registry API writes it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def push_image(registry: str, repository: str, image: TinyImage, tag: str) -> float:
    """Push blobs, then the manifest; return the seconds. Blocks. Raises `TransferFailed`."""

    def push(connection: RegistryConnection, digest: str) -> None:
        if not connection.has_blob(repository, digest):
            connection.push_blob(repository, image.blobs[digest], digest)

    began = time.perf_counter()
    _each(registry, image.blobs, push)
    with RegistryConnection(registry) as connection:
        connection.put_manifest(repository, tag, image.manifest, image.media_type)
    return time.perf_counter() - began


def add_tags(registry: str, repository: str, image: TinyImage, tags: list[str]) -> None:
    """Give the manifest so many tags. Blocks. Raises `TransferFailed`."""

    def put(connection: RegistryConnection, some: list[str]) -> None:
        connection.put_manifest(repository, image.digest, image.manifest, image.media_type, some)

    some = [tags[start : start + TAGS_AT_ONCE] for start in range(0, len(tags), TAGS_AT_ONCE)]
    _each(registry, some, put)


def _each(registry: str, items: Iterable[T], do: Callable[[RegistryConnection, T], None]) -> None:
    """Do this for every item, over `AT_ONCE` connections."""
    waiting = iter(list(items))

    def work() -> None:
        with RegistryConnection(registry) as connection:
            for item in waiting:
                do(connection, item)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="push") as pool:
        for worker in [pool.submit(work) for _ in range(AT_ONCE)]:
            worker.result()


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest_of(content), "size": len(content)}
