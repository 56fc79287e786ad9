# SPDX-License-Identifier: Apache-2.0
"""An origin with a backend is a cache: what the backend has makes room, and comes back."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from functools import partial
from pathlib import Path

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
