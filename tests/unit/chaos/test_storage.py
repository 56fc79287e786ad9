# SPDX-License-Identifier: Apache-2.0
"""The storage of a cluster under chaos, by the backend that speaks to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from shoal.backend.base import Backend, BlobName
from shoal.backend.config import WebHdfsBackendConfig
from shoal.backend.matching import Backends
from shoal.chaos.storage import Storage
from shoal.model.digest import Digest
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

DATA = bytes(range(256)) * 2000
NAME = BlobName("team/app", Digest.of(DATA))


def contents(folder: Path) -> list[bytes]:
    """Of all blobs that are stored there."""
    return [path.read_bytes() for path in folder.rglob("data")]


def soon() -> Deadline:
    return Deadline.after(10)


@asynccontextmanager
async def stored(folder: Path, failing: float) -> AsyncIterator[tuple[Storage, Backend]]:
    storage = Storage(folder / "storage", 1, failing)
    http = HttpClient(user_agent="test")
    await storage.listen("127.0.0.1")
    config = WebHdfsBackendConfig(
        kind="webhdfs", match=".*", name_nodes=(storage.address,), root="shoal"
    )
    backends = Backends.open([config], {}, http)
    matched = backends.for_blobs("team/app")
    assert matched is not None
    try:
        yield storage, matched.backend
    finally:
        await backends.close()
        await http.close()
        await storage.close()


async def test_what_is_stored_is_there_and_lies_below_its_folder(tmp_path: Path) -> None:
    async with stored(tmp_path, 0.0) as (storage, backend):
        assert await backend.stat(NAME, deadline=soon()) is None
        for _ in range(2):
            await backend.put(NAME, DATA, deadline=soon())
        assert await backend.stat(NAME, deadline=soon()) == len(DATA)
        async with backend.get(NAME, deadline=soon()) as content:
            assert b"".join([chunk async for chunk in content.chunks()]) == DATA
        assert contents(tmp_path) == [DATA]
        assert storage.failures == 0


async def test_it_fails_as_often_as_it_is_told_and_loses_nothing(tmp_path: Path) -> None:
    async with stored(tmp_path, 0.5) as (storage, backend):
        acknowledged = 0
        for _ in range(30):
            with suppress(CallFailed):
                await backend.put(NAME, DATA, deadline=soon())
                acknowledged += 1
        assert 0 < acknowledged < 30
        assert storage.failures > 0
        assert contents(tmp_path) == [DATA]


async def test_while_it_is_down_it_answers_nothing(tmp_path: Path) -> None:
    async with stored(tmp_path, 0.0) as (storage, backend):
        storage.up = False
        with pytest.raises(CallFailed):
            await backend.stat(NAME, deadline=soon())
        storage.up = True
        assert await backend.stat(NAME, deadline=soon()) is None
