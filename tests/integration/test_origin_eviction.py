# SPDX-License-Identifier: Apache-2.0
"""An origin with a backend is a cache: what the backend has makes room, and comes back."""

from __future__ import annotations

import asyncio
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shoal.model.digest import Digest
from tests.integration.origin_ring import running_ring, until

MIB = 1024 * 1024


def ask(method: str, url: str, data: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=data, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status, answer.read()


async def test_what_a_backend_has_makes_room_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "backend").mkdir()
    backend = {"match": ".*", "kind": "local", "path": str(tmp_path / "backend")}
    cache = {"budget": "10MiB", "min_free": "0B"}
    with running_ring(
        tmp_path, origins=1, replicas=1, write_quorum=1, backends=[backend], cache=cache
    ) as ring:
        [origin] = ring.origins
        blobs = [os.urandom(3 * MIB) for _ in range(6)]

        def url(data: bytes) -> str:
            return origin.url(f"/namespace/team%2Fapp/blobs/{Digest.of(data)}")

        def backed(data: bytes) -> bool:
            path = origin.path(Digest.of(data))
            return path.with_name(f"{path.name}.backed").exists() or not path.exists()

        for data in blobs:
            assert (await asyncio.to_thread(ask, "PUT", url(data), data))[0] == 201
            await until(partial(backed, data))
        here = [data for data in blobs if origin.path(Digest.of(data)).exists()]
        assert blobs[-1] in here
        assert blobs[0] not in here
        assert sum(map(len, here)) <= 10 * MIB
        for data in blobs:
            assert await asyncio.to_thread(ask, "GET", url(data)) == (200, data)
        here = [data for data in blobs if origin.path(Digest.of(data)).exists()]
        assert sum(map(len, here)) <= 10 * MIB


@contextmanager
def registry(blobs: dict[str, bytes]) -> Iterator[str]:
    """Another registry, which has blobs in all repositories; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = blobs.get(self.path.rpartition("/")[2]) if "/blobs/" in self.path else None
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def test_a_pushed_blob_that_an_upstream_has_too_is_not_evicted(tmp_path: Path) -> None:
    """The base layer was pulled through before: the push finds it on the origins already."""
    base, *others = (os.urandom(3 * MIB) for _ in range(8))
    contents = {str(Digest.of(data)): data for data in (base, *others)}
    with (
        registry(contents) as url,
        running_ring(
            tmp_path,
            origins=1,
            replicas=1,
            write_quorum=1,
            upstreams={"up.example.com": {"url": url, "allow_private": True}},
            cache={"budget": "10MiB", "min_free": "0B"},
        ) as ring,
    ):
        [origin] = ring.origins

        def at(repository: str, data: bytes) -> str:
            return origin.url(f"/namespace/{quote(repository, '')}/blobs/{Digest.of(data)}")

        async def call(method: str, url: str, data: bytes | None = None) -> tuple[int, bytes]:
            return await asyncio.to_thread(ask, method, url, data)

        assert await call("GET", at("up.example.com/base", base)) == (200, base)
        assert (await call("PUT", at("own/app", base), base))[0] == 201
        for data in others:
            assert await call("GET", at("up.example.com/base", data)) == (200, data)
        assert not origin.path(Digest.of(others[0])).exists(), "the cache was never full"
        assert await call("GET", at("own/app", base)) == (200, base)


async def test_what_was_pushed_before_there_was_a_backend_is_not_evicted(tmp_path: Path) -> None:
    """Another repository, which has a backend, has the same layer later."""
    base, *others = (os.urandom(3 * MIB) for _ in range(6))
    (tmp_path / "backend").mkdir()
    backend = {"match": "team/.*", "kind": "local", "path": str(tmp_path / "backend")}
    cache = {"budget": "10MiB", "min_free": "0B"}
    alone: dict[str, Any] = {"origins": 1, "replicas": 1, "write_quorum": 1}

    data_dir = str(tmp_path / "data")
    with running_ring(tmp_path / "before", **alone, data_dir=data_dir) as ring:
        url = ring.origins[0].url(f"/namespace/old%2Fapp/blobs/{Digest.of(base)}")
        assert (await asyncio.to_thread(ask, "PUT", url, base))[0] == 201

    later: dict[str, Any] = {"backends": [backend], "cache": cache, "data_dir": data_dir}
    with running_ring(tmp_path / "after", **alone, **later) as ring:
        [origin] = ring.origins

        def at(repository: str, data: bytes) -> str:
            return origin.url(f"/namespace/{quote(repository, '')}/blobs/{Digest.of(data)}")

        def backed(data: bytes) -> bool:
            path = origin.path(Digest.of(data))
            return path.with_name(f"{path.name}.backed").exists() or not path.exists()

        for data in (base, *others):
            assert (await asyncio.to_thread(ask, "PUT", at("team/app", data), data))[0] == 201
            await until(partial(backed, data))
        assert not origin.path(Digest.of(others[0])).exists(), "the cache was never full"
        assert await asyncio.to_thread(ask, "GET", at("old/app", base)) == (200, base)
