# SPDX-License-Identifier: Apache-2.0
"""Origins that are stopped (SIGSTOP) in the middle of their work, and then go on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Unreachable
from tests.integration.origin_ring import Origin, running_ring, until
from tests.integration.test_backends import behind_web_server

NAME = "team/app"
SETTINGS: dict[str, Any] = {
    "writeback": {"stagger": "1s", "retry": {"initial": "100ms", "cap": "500ms"}}
}


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


def is_backed(origin: Origin, digest: Digest) -> bool:
    return origin.path(digest).with_name(f"{digest.hex}.backed").exists()


async def test_a_leader_that_is_stopped_while_it_fetches_holds_up_nobody_for_long(
    tmp_path: Path, http: HttpClient
) -> None:
    async with behind_web_server(tmp_path) as (server, ring):
        data = os.urandom(3_000_000)
        digest = server.hold(data)
        leader = ring.in_order(digest)[0]
        cluster = OriginCluster(http, ring.config)
        server.gate.clear()

        async def read(seconds: float) -> bytes:
            deadline = Deadline.after(seconds)
            return await cluster.read(digest, deadline=deadline, limit=len(data), namespace=NAME)

        first = asyncio.create_task(read(10))
        await until(lambda: server.requests[f"GET {digest.hex}"] == 1)
        leader.freeze()
        server.gate.set()
        began = time.monotonic()
        with pytest.raises(CallFailed):
            await first
        while True:
            try:
                assert await read(5) == data
            except CallFailed:
                assert time.monotonic() - began < 45
            else:
                break
        leader.thaw()
        await until(lambda: is_backed(leader, digest))
        assert await read(20) == data


async def test_what_a_stopped_owner_was_to_write_another_one_writes(
    tmp_path: Path, http: HttpClient
) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    backend = {"match": ".*", "kind": "local", "path": str(bucket)}
    with running_ring(tmp_path / "ring", backends=[backend], **SETTINGS) as ring:
        cluster = OriginCluster(http, ring.config)
        data = os.urandom(5_000_000)
        digest = Digest.of(data)
        file = tmp_path / "blob"
        file.write_bytes(data)
        first = ring.in_order(digest)[0]
        first.freeze()
        result = await cluster.upload(
            digest, file, len(data), deadline=Deadline.after(30), namespace=NAME
        )
        assert result.copies >= 2
        others = [origin for origin in ring.origins if origin is not first]
        await until(lambda: all(is_backed(origin, digest) for origin in others), 20)
        [stored] = [
            path for path in bucket.rglob("*") if path.is_file() and path.stat().st_size > 1e6
        ]
        assert stored.read_bytes() == data
        first.thaw()
        copy = await cluster.open(digest, deadline=Deadline.after(20))
        assert b"".join([part async for part in copy.segments(0, copy.size)]) == data
        # What it had begun to take in comes to its end, or to nothing.
        await until(lambda: not first.path(digest).exists() or is_backed(first, digest), 20)
        await until(lambda: first.leftovers() == [], 40)


async def test_where_all_origins_are_stopped_a_reader_is_told_so_soon(
    tmp_path: Path, http: HttpClient
) -> None:
    with running_ring(tmp_path / "ring", **SETTINGS) as ring:
        cluster = OriginCluster(http, ring.config)
        digest = Digest.of(b"a manifest")
        for origin in ring.origins:
            origin.freeze()
        began = time.monotonic()
        refused = await asyncio.gather(
            cluster.read(digest, deadline=Deadline.after(60), limit=100, namespace=NAME),
            cluster.open(digest, deadline=Deadline.after(60), namespace=NAME),
            cluster.metainfo(digest, deadline=Deadline.after(60), namespace=NAME),
            return_exceptions=True,
        )
        assert time.monotonic() - began < 20
        for error in refused:
            assert isinstance(error, Unreachable)
            assert f"{digest}, and not all could be asked" in str(error)
        for origin in ring.origins:
            origin.thaw()
