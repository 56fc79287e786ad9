# SPDX-License-Identifier: Apache-2.0
"""A bucket that a cluster writes, as another registry reads it meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from shoal.backend.base import BlobName, LinkName, Name, TagName
from shoal.backend.paths import Layout
from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from tests.cluster import RunningCluster
from tests.integration.origin_ring import until

NAME = "team/app"


def part(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


async def test_a_tag_appears_in_a_slow_bucket_when_all_that_it_needs_is_there(
    tmp_path: Path,
) -> None:
    bucket = {"kind": "local", "match": ".*", "path": str(tmp_path / "bucket")}
    slow = {**bucket, "bandwidth": {"write": "2MB/s"}}
    config = {"origin": {"backends": [slow]}, "build-index": {"backends": [bucket]}}
    layer, settings = os.urandom(6_000_000), b"{}"
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": part(OCI_CONFIG, settings),
        "layers": [part(OCI_LAYER, layer)],
    }
    manifest = json.dumps(document).encode()

    def is_there(name: Name) -> bool:
        return (tmp_path / "bucket" / Layout().path(name)).exists()

    http = HttpClient(user_agent="test")
    try:
        with RunningCluster.start(tmp_path / "cluster", agents=0, config=config) as cluster:
            registry = RegistryClient(http, cluster.proxy)
            for content in (layer, settings):
                await registry.push_blob(NAME, Digest.of(content), content, way="put")
            await registry.put_manifest(NAME, "v1", manifest, OCI_MANIFEST)
            assert not is_there(BlobName(NAME, Digest.of(layer))), "it is slow"
            await until(lambda: is_there(TagName(NAME, "v1")), within=60)
            for content in (manifest, layer, settings):
                digest = Digest.of(content)
                assert is_there(BlobName(NAME, digest))
                kind: Literal["blob", "manifest"] = "manifest" if content == manifest else "blob"
                assert is_there(LinkName(NAME, digest, kind))
    finally:
        await http.close()
