# SPDX-License-Identifier: Apache-2.0
"""What an agent's cache gives up, and what it never does."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal.agent.library import Library
from shoal.agent.service import AgentService
from shoal.agent.timeline import Journal
from shoal.model.digest import Digest
from shoal.swarm.metainfo import MIN_PIECE, metainfo_of
from shoal.swarm.pieces import PieceFile

DATA = os.urandom(3 * MIN_PIECE)
METAINFO = metainfo_of(DATA)
DIGEST = Digest.parse(METAINFO.digest)


class Agent:
    """An agent's service with a cache, and nobody else."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.library = Library(root, executor)
        self.shared: dict[Digest, Any] = {}
        self.told: list[Digest] = []
        self.service = AgentService(Journal(0.0))
        node = SimpleNamespace(blobs=self.shared, remove=lambda digest: self.shared.pop(digest, 0))
        announcer = SimpleNamespace(has_not=self.told.append)
        sources = SimpleNamespace(node=node, announcer=announcer, library=self.library)
        self.service.connect(cast("Any", sources))

    async def fetched(self, pieces: int = METAINFO.count) -> PieceFile:
        file = self.library.partial(METAINFO)
        for index in range(pieces):
            start, stop = METAINFO.span(index)
            assert await file.store(index, memoryview(DATA)[start:stop])
        if pieces == METAINFO.count:
            self.library.finish(file)
        return file

    def share(self, pieces: PieceFile, idle: float = 0.0) -> None:
        last_used = time.monotonic() - idle
        self.shared[DIGEST] = SimpleNamespace(pieces=pieces, last_used=last_used)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with ThreadPoolExecutor(1) as executor:
        yield Agent(tmp_path, executor)


async def test_a_cached_blob_goes_and_the_trackers_are_told(agent: Agent) -> None:
    (await agent.fetched()).close()
    [cached] = agent.service.blobs()
    assert (cached.digest, cached.protected) == (DIGEST, False)
    assert cached.size >= len(DATA)
    assert await agent.service.evict(DIGEST)
    assert agent.told == [DIGEST]
    assert agent.library.complete(DIGEST) is None
    assert list(agent.service.blobs()) == []


async def test_a_partial_blob_counts_by_what_it_takes_and_goes_too(agent: Agent) -> None:
    (await agent.fetched(pieces=1)).close()
    [cached] = agent.service.blobs()
    assert MIN_PIECE <= cached.size < len(DATA)
    assert await agent.service.evict(DIGEST)
    assert list(agent.service.blobs()) == []


async def test_a_blob_that_is_read_or_sent_stays(agent: Agent) -> None:
    pieces = await agent.fetched()
    agent.share(pieces)
    pieces.file.acquire()
    [cached] = agent.service.blobs()
    assert cached.protected
    assert not await agent.service.evict(DIGEST)
    pieces.file.release()
    assert await agent.service.evict(DIGEST)
    assert agent.shared == {}
    pieces.close()


async def test_a_blob_that_is_being_fetched_stays(agent: Agent) -> None:
    (await agent.fetched(pieces=1)).close()
    agent.service._downloads[DIGEST] = cast("Any", None)
    [cached] = agent.service.blobs()
    assert cached.protected
    assert not await agent.service.evict(DIGEST)
    assert agent.told == []


async def test_a_blob_in_the_swarm_was_used_when_a_peer_last_did(agent: Agent) -> None:
    pieces = await agent.fetched()
    path = agent.library._store.path(DIGEST)
    os.utime(path, (1e9, 1e9))
    [cached] = agent.service.blobs()
    assert cached.last_used == 1e9
    agent.share(pieces, idle=100)
    [cached] = agent.service.blobs()
    assert abs(time.time() - 100 - cached.last_used) < 5
    pieces.close()


async def test_opening_a_blob_counts_as_use_at_most_once_a_minute(agent: Agent) -> None:
    (await agent.fetched()).close()
    path = agent.library._store.path(DIGEST)
    recent = time.time() - 30
    os.utime(path, (recent, 1e9))
    for expected in (recent, time.time()):
        pieces = agent.library.complete(DIGEST)
        assert pieces is not None
        pieces.close()
        assert abs(path.stat().st_atime - expected) < 5
        assert path.stat().st_mtime == 1e9
        os.utime(path, (time.time() - 61, 1e9))


async def test_who_asks_for_a_blob_that_goes_waits_until_it_is_gone(agent: Agent) -> None:
    (await agent.fetched()).close()
    going = asyncio.create_task(agent.service.evict(DIGEST))
    await asyncio.sleep(0)
    assert await agent.service.open(DIGEST) is None
    began: list[Digest] = []

    def download(digest: Digest, namespace: str, **_: object) -> Any:
        began.append(digest)
        assert going.done() or agent.library.complete(digest) is None

    agent.service._download = download  # type: ignore[method-assign,assignment]
    await agent.service.fetch(DIGEST, "")
    assert began == [DIGEST]
    assert await going


async def test_a_manifest_that_finds_no_room_leaves_nothing(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent.library._store, "adopt", full)
    with pytest.raises(OSError, match="No space"):
        agent.library.keep_small(DIGEST, DATA)
    assert list(agent.library._store.temp().parent.iterdir()) == []
