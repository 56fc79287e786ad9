# SPDX-License-Identifier: Apache-2.0
"""A registry over HTTP for tests: the proxy's service with origins in memory behind it."""

from __future__ import annotations

import json
from pathlib import Path

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from shoal.proxy.service import ProxyService
from shoal.proxy.uploads import Uploads
from shoal.registry.app import registry_routes
from shoal.store.uploads import UploadSessions
from shoal.web.server import application
from tests.unit.registry_fakes import QUORUM, MemoryIndex, MemoryOrigins

BLOB = bytes(range(256)) * 16
DIGEST = Digest.of(BLOB)
ABSENT = Digest.of(b"nobody has this")
UPLOADS = "/v2/team/app/blobs/uploads/"

Client = TestClient[web.Request, web.Application]


class Registry:
    """A registry to talk to, and what is behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origins = MemoryOrigins()
        self.index = MemoryIndex(self.origins)
        self.service = ProxyService(
            origins=self.origins,
            index=self.index,
            uploads=Uploads(UploadSessions(folder), idle_timeout=5),
            write_quorum=QUORUM,
        )

    def application(self, *, pulls_only: bool = False) -> web.Application:
        async def ready() -> list[str]:
            return []

        app = application("test", readiness=ready)
        registry_routes(app, self.service, None if pulls_only else self.service)
        return app


async def code(answer: ClientResponse) -> tuple[int, str]:
    """Status and error code, from a body that has the spec's form."""
    assert answer.content_type == "application/json"
    document = await answer.json()
    (error,) = document["errors"]
    assert error["message"]
    return answer.status, error["code"]


async def open_upload(client: Client, path: str = UPLOADS) -> str:
    answer = await client.post(path)
    assert answer.status == 202
    return answer.headers["Location"]


def image(kind: str = OCI_MANIFEST, *layers: bytes) -> bytes:
    def entry(media_type: str, content: bytes) -> dict[str, object]:
        digest = str(Digest.of(content))
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": entry(OCI_CONFIG, b"{}"),
        "layers": [entry(OCI_LAYER, layer) for layer in layers],
    }
    # Spaces and all: what is pushed must come back byte for byte.
    return json.dumps(document, indent=3).encode() + b"\n"


async def push_image(client: Client, registry: Registry, tag: str = "v1") -> bytes:
    registry.origins.hold(BLOB)
    registry.origins.hold(b"{}")
    body = image(OCI_MANIFEST, BLOB)
    answer = await client.put(
        f"/v2/team/app/manifests/{tag}", data=body, headers={"Content-Type": OCI_MANIFEST}
    )
    assert answer.status == 201
    return body
