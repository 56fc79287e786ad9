# SPDX-License-Identifier: Apache-2.0
"""A registry over HTTP for tests, with everything behind it in memory."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from shoal.registry.app import registry_routes
from shoal.web.server import application
from tests.unit.registry_fakes import MemoryRegistry

BLOB = bytes(range(256)) * 16
DIGEST = Digest.of(BLOB)
ABSENT = Digest.of(b"nobody has this")
UPLOADS = "/v2/team/app/blobs/uploads/"

Client = TestClient[web.Request, web.Application]


NAME = "team/app"


class Registry(MemoryRegistry):
    """A registry to talk to."""

    def application(self, *, pulls_only: bool = False) -> web.Application:
        async def ready() -> list[str]:
            return []

        app = application("test", readiness=ready)
        registry_routes(app, self, None if pulls_only else self)
        return app


@dataclass(frozen=True)
class RawAnswer:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error code of a body that has the spec's form."""
        (error,) = json.loads(self.body)["errors"]
        assert error["message"]
        return str(error["code"])


async def raw(client: Client, request: bytes, *, timeout: float = 10) -> RawAnswer:
    """Send bytes that no HTTP library would send, and read one answer with a Content-Length."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    try:
        writer.write(request)
        async with asyncio.timeout(timeout):
            received = await reader.readuntil(b"\r\n\r\n")
            while received.startswith(b"HTTP/1.1 100 "):
                received = await reader.readuntil(b"\r\n\r\n")
            (answer,) = parsed(received)
            if request.startswith(b"HEAD "):
                return answer
            body = await reader.readexactly(int(answer.headers["content-length"]))
    finally:
        writer.close()
    return RawAnswer(answer.status, answer.headers, body)


async def raw_all(client: Client, request: bytes, *, timeout: float = 10) -> list[RawAnswer]:
    """All answers to what is sent on one connection, which the last request is to close."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    try:
        writer.write(request)
        async with asyncio.timeout(timeout):
            received = await reader.read()
    finally:
        writer.close()
    return parsed(received)


def parsed(received: bytes) -> list[RawAnswer]:
    """Cut what a connection gave into answers; each has a Content-Length or is the last."""
    answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", len(received)))
        status = int(first.split()[1])
        if status >= 200:
            answers.append(RawAnswer(status, headers, received[:length]))
            received = received[length:]
    return answers


def get(target: str, *headers: str, method: str = "GET") -> bytes:
    """A request that ends its connection, its target as it is."""
    lines = [f"{method} {target} HTTP/1.1", "Host: registry", *headers, "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


def holding(registry: Registry) -> object:
    """Everything that is stored, to be compared."""
    index = registry.index
    kept = dict(registry.origins.blobs), dict(index.entries), set(index.links)
    return *kept, set(index.manifests), {k: bytes(v.content) for k, v in registry.uploads.items()}


async def assert_alive(client: Client) -> None:
    """The service answers others."""
    assert (await client.get("/v2/")).status == 200


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


def entry(media_type: str, content: bytes, **more: Any) -> dict[str, Any]:
    """A descriptor of content."""
    digest = str(Digest.of(content))
    return {"mediaType": media_type, "digest": digest, "size": len(content), **more}


def image(kind: str = OCI_MANIFEST, *layers: bytes, **more: Any) -> bytes:
    """An image manifest whose config is ``{}``."""
    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": entry(OCI_CONFIG, b"{}"),
        "layers": [entry(OCI_LAYER, layer) for layer in layers],
        **more,
    }
    # Spaces and all: what is pushed must come back byte for byte.
    return json.dumps(document, indent=3).encode() + b"\n"


def index(*children: bytes, kind: str = OCI_INDEX, **more: Any) -> bytes:
    """An index of image manifests."""
    entries = [entry(OCI_MANIFEST, child) for child in children]
    document = {"schemaVersion": 2, "mediaType": kind, "manifests": entries, **more}
    return json.dumps(document).encode()


async def push(client: Client, body: bytes, reference: str, **more: Any) -> ClientResponse:
    """Push a manifest with the type that it names."""
    kind = json.loads(body)["mediaType"]
    return await client.put(
        f"/v2/{NAME}/manifests/{reference}",
        data=BytesIO(body),
        headers={"Content-Type": kind},
        **more,
    )


async def push_image(client: Client, registry: Registry, tag: str = "v1") -> bytes:
    """Push an image of one layer, whose blobs are there, and return its manifest."""
    registry.hold(BLOB, NAME)
    registry.hold(b"{}", NAME)
    body = image(OCI_MANIFEST, BLOB)
    answer = await push(client, body, tag)
    assert answer.status == 201
    return body
