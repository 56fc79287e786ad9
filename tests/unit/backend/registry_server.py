# SPDX-License-Identifier: Apache-2.0
"""A small registry on a loopback port, and ways to make it hostile."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from shoal.backend.registry import RegistryBackend
from shoal.backend.upstreams import UpstreamConfig, UpstreamNames
from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from shoal.web.deadline import Deadline

Hook = Callable[[web.Request], Awaitable[web.StreamResponse | None]]

USER, PASSWORD = "reader", "s3cret-of-the-registry"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


class FakeRegistry:
    """Blobs, manifests and tags of any repository, with what a test makes of it."""

    def __init__(self) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.seen: list[Seen] = []
        self.hooks: list[Hook] = []
        self.base = ""
        self.base_port = 0
        self._uploads: dict[str, bytes] = {}

    # -- content ------------------------------------------------------------------------------

    def add_blob(self, repository: str, content: bytes) -> Digest:
        digest = Digest.of(content)
        self.blobs[repository, str(digest)] = content
        return digest

    def add_manifest(self, repository: str, body: bytes, tag: str | None = None) -> Digest:
        digest = Digest.of(body)
        self.manifests[repository, str(digest)] = (OCI_MANIFEST, body)
        if tag is not None:
            self.tags.setdefault(repository, {})[tag] = str(digest)
        return digest

    def requests(self, method: str, part: str = "") -> list[Seen]:
        return [it for it in self.seen if it.method == method and part in it.path]

    def hook(self, hook: Hook) -> Hook:
        """Have this function asked first; it may give an answer of its own."""
        self.hooks.insert(0, hook)
        return hook

    # -- serving ------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeRegistry]:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        server = TestServer(app, host="127.0.0.1", scheme="https" if tls else "http")
        await server.start_server(ssl=tls)
        try:
            self.base = f"{server.scheme}://127.0.0.1:{server.port}"
            self.base_port = server.port or 0
            yield self
        finally:
            await server.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(Seen(request.method, request.path_qs, dict(request.headers), body))
        for hook in self.hooks:
            answer = await hook(request)
            if answer is not None:
                return answer
        parts = request.path.removeprefix("/v2/").rsplit("/", 2)
        if request.path == "/v2/_catalog":
            return self._page(request, "repositories", sorted(self.tags), self._link(request))
        if request.path.endswith("/tags/list"):
            names = sorted(self.tags.get(parts[0], {}))
            return self._page(request, "tags", names, self._link(request))
        if "/blobs/uploads" in request.path:
            return self._upload(request, body)
        repository, kind, reference = parts
        if kind == "blobs":
            return self._blob(request, repository, reference)
        return self._manifest(request, repository, reference, body)

    def _blob(self, request: web.Request, repository: str, digest: str) -> web.Response:
        content = self.blobs.get((repository, digest))
        if content is None:
            return error(404, "BLOB_UNKNOWN")
        if request.method == "DELETE":
            del self.blobs[repository, digest]
            return web.Response(status=202)
        part = request.http_range
        if request.method == "GET" and (part.start is not None or part.stop is not None):
            start, stop = part.start or 0, min(part.stop or len(content), len(content))
            if start >= len(content):
                headers = {"Content-Range": f"bytes */{len(content)}"}
                return web.Response(status=416, headers=headers)
            headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            return web.Response(status=206, body=content[start:stop], headers=headers)
        return web.Response(body=content, headers={"Docker-Content-Digest": digest})

    def _manifest(
        self, request: web.Request, repository: str, reference: str, body: bytes
    ) -> web.Response:
        if request.method == "PUT":
            digest = self.add_manifest(repository, body, None if ":" in reference else reference)
            return web.Response(status=201, headers={"Docker-Content-Digest": str(digest)})
        digest_text = self.tags.get(repository, {}).get(reference, reference)
        found = self.manifests.get((repository, digest_text))
        if found is None:
            return error(404, "MANIFEST_UNKNOWN")
        if request.method == "DELETE":
            if ":" in reference:
                del self.manifests[repository, digest_text]
            else:
                del self.tags[repository][reference]
            return web.Response(status=202)
        headers = {"Docker-Content-Digest": digest_text, "Content-Type": found[0]}
        return web.Response(body=found[1], headers=headers)

    def _upload(self, request: web.Request, body: bytes) -> web.Response:
        repository = request.path.removeprefix("/v2/").partition("/blobs/uploads/")[0]
        if request.method == "POST":
            key = f"session-{len(self._uploads)}"
            self._uploads[key] = b""
        else:
            key = request.path.rpartition("/")[2]
            assert request.query["state"] == "a b+c"
            self._uploads[key] += body
        location = f"/v2/{repository}/blobs/uploads/{key}?state=a%20b%2Bc"
        if request.method != "PUT":
            return web.Response(status=202, headers={"Location": location})
        content = self._uploads.pop(key)
        if str(Digest.of(content)) != request.query["digest"]:
            return error(400, "DIGEST_INVALID")
        self.add_blob(repository, content)
        return web.Response(status=201)

    def _link(self, request: web.Request) -> str:
        return request.path

    def _page(self, request: web.Request, key: str, names: list[str], path: str) -> web.Response:
        limit = int(request.query.get("n", "100"))
        after = [name for name in names if name > request.query.get("last", "")]
        headers = {}
        if len(after) > limit:
            headers["Link"] = f'<{path}?n={limit}&last={after[limit - 1]}>; rel="next"'
        return web.json_response({"name": "x", key: after[:limit]}, headers=headers)


def error(status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
    """An answer with the spec's error body."""
    body = {"errors": [{"code": code, "message": "as the test wants it"}]}
    return web.json_response(body, status=status, headers=headers)


def bearer(registry: FakeRegistry, realm: str, *, tokens: set[str], scope: bool = False) -> None:
    """Have the registry want one of these tokens, from a token service."""

    async def check(request: web.Request) -> web.StreamResponse | None:
        if not request.path.startswith("/v2/"):
            return None
        if request.headers.get("Authorization", "").removeprefix("Bearer ") in tokens:
            return None
        said = f'Bearer realm="{realm}",service="fake"'
        if scope:
            said += ',scope="repository:team/app:pull"'
        return error(401, "UNAUTHORIZED", {"WWW-Authenticate": said})

    registry.hook(check)


def manifest_of(*layers: bytes) -> bytes:
    """An image manifest."""

    def entry(media_type: str, content: bytes) -> dict[str, Any]:
        return {
            "mediaType": media_type,
            "digest": str(Digest.of(content)),
            "size": len(content),
        }

    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": entry(OCI_CONFIG, b"{}"),
            "layers": [entry(OCI_LAYER, layer) for layer in layers],
        }
    ).encode()


@asynccontextmanager
async def upstream_of(
    registry: FakeRegistry, *, name: str = "up.example.com", **settings: Any
) -> AsyncIterator[RegistryBackend]:
    """The registry as an upstream whose repositories are ``up.example.com/...``."""
    config = UpstreamConfig.model_validate({"url": registry.base, "timeout": 5.0, **settings})
    remote = UpstreamNames({name: config}).remote(f"{name}/team/app")
    assert remote is not None
    backend = RegistryBackend.upstream(remote)
    try:
        yield backend
    finally:
        await backend.close()


def soon(seconds: float = 10.0) -> Deadline:
    return Deadline.after(seconds)


@contextmanager
def no_requests(registry: FakeRegistry) -> Iterator[None]:
    """Check that nothing is asked of the registry inside."""
    before = len(registry.seen)
    yield
    assert registry.seen[before:] == []
