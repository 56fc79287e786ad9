# SPDX-License-Identifier: Apache-2.0
"""An agent's downloads over a real peer endpoint; trackers and origins say what a test wants."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal.agent.download import Sources
from shoal.agent.library import Library
from shoal.agent.membership import Said
from shoal.agent.service import AgentService
from shoal.agent.timeline import Journal
from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown
from shoal.swarm.limits import Share
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.throttle import Throttle
from shoal.swarm.wire import Request
from shoal.tracker.messages import Joined
from shoal.web.bodies import Blob, FileSegment
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Unreachable
from tests.integration.swarm_hosts import (
    PATIENCE,
    PIECE,
    Content,
    Host,
    Puppet,
    Stage,
    pieces,
)

AN_ORIGIN = PeerInfo(new_peer_id(), "127.0.0.1", 1, origin=True)
"""That nobody reaches."""

DOWN = Unreachable("GET", "/internal/blobs", "no origin could be asked")
GONE = NotFound("GET", "/internal/blobs", "no origin has it", status=404)


def said(content: Content) -> Said:
    """What a manifest says of it."""
    return Said(content.metainfo.size, Digest.of(b"manifest"), 1)


class Origins:
    """Give small blobs, or fail."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.failure: CallFailed = DOWN
        self.patience: list[float] = []
        """Of those who asked, in seconds."""

    async def read(self, digest: Digest, *, deadline: Deadline, **_: object) -> bytes:
        self.patience.append(deadline.remaining())
        if digest in self.blobs:
            return self.blobs[digest]
        raise self.failure

    async def open(self, digest: Digest, **_: object) -> Blob:
        raise self.failure


class Agent:
    """The blobs of an agent, whose part in the swarm is that of a host on the stage."""

    def __init__(self, host: Host, hashing: ThreadPoolExecutor) -> None:
        self.host = host
        self.origins = Origins()
        self.peers: list[PeerInfo] = []
        """Whom the tracker tells of."""
        self.library = Library(host.folder / "cache", host.node.executor)
        self.service = AgentService(Journal(0.0))
        host.node.provider = self.service
        self._contents: dict[Digest, Content] = {}
        silent = SimpleNamespace(fetches=_ignore, has=_ignore, has_not=_ignore, seek=_ignore)
        sources = Sources(
            host.node,
            cast("Any", SimpleNamespace(join=self._join)),
            cast("Any", silent),
            cast("Any", self.origins),
            self.library,
            cast("Any", SimpleNamespace(reserve=_reserve)),
            hashing,
            PATIENCE,
        )
        self.service.connect(sources)

    def knows(self, *contents: Content) -> None:
        """What the tracker knows the metainfo of."""
        self._contents |= {content.digest: content for content in contents}

    async def keep(self, content: Content, have: Iterable[int]) -> None:
        """An earlier process left these pieces."""
        file = self.library.partial(content.metainfo)
        for index in have:
            assert await file.store(index, memoryview(content.piece(index)))
        if file.all_verified:
            self.library.finish(file)
        file.close()

    async def _join(self, digest: Digest, *_: object, **__: object) -> Joined:
        return Joined(self._contents[digest].metainfo, self.peers, 30.0)

    async def open(self, content: Content) -> Blob:
        return await self.service.open_blob(content.digest, "team/app", Deadline.after(PATIENCE))

    async def read(self, content: Content, start: int = 0, stop: int | None = None) -> bytes:
        """What a client is sent."""
        blob = await self.open(content)
        parts = []
        try:
            async with asyncio.timeout(PATIENCE):
                stop = content.metainfo.size if stop is None else stop
                async for part in blob.segments(start, stop):
                    assert isinstance(part, FileSegment)
                    count = part.stop - part.start
                    parts.append(os.pread(part.descriptor, count, part.start))
        finally:
            await blob.close()
        return b"".join(parts)


def _ignore(*_: object, **__: object) -> None:
    """Nobody is told."""


@asynccontextmanager
async def _reserve(*_: object) -> AsyncIterator[None]:
    yield


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


@pytest.fixture
async def agent(stage: Stage) -> AsyncGenerator[Agent]:
    with ThreadPoolExecutor(1) as hashing:
        it = Agent(await stage.host(), hashing)
        yield it
        for task in tuple(it.service._tasks.values()):
            task.cancel()
            await asyncio.wait([task])


# -- blobs of one piece


async def test_a_blob_of_one_piece_comes_from_the_origins_in_one_request(agent: Agent) -> None:
    content = pieces(1)
    agent.knows(content)
    agent.origins.blobs[content.digest] = content.data
    assert await agent.read(content) == content.data
    assert agent.origins.patience == [pytest.approx(10.0, abs=1.0)]


@pytest.mark.parametrize("failure", [DOWN, GONE], ids=["down", "gone"])
async def test_a_blob_of_one_piece_comes_from_a_host_that_has_it_when_no_origin_gives_it(
    stage: Stage, agent: Agent, failure: CallFailed
) -> None:
    content = pieces(1)
    seed = await stage.seed(content)
    agent.knows(content)
    agent.peers = [AN_ORIGIN, seed.peer]
    agent.origins.failure = failure
    assert await agent.read(content) == content.data
    assert agent.host.received_from(seed) == content.metainfo.size
    # Origins that hang hold it up for no longer than this.
    assert agent.origins.patience == [pytest.approx(2.0, abs=1.0)]


@pytest.mark.parametrize(
    "failure, expected", [(DOWN, Unreachable), (GONE, BlobUnknown)], ids=["down", "gone"]
)
async def test_a_blob_of_one_piece_that_nobody_gives_fails_at_once_with_the_reason(
    agent: Agent, failure: CallFailed, expected: type[Exception]
) -> None:
    content = pieces(1)
    agent.knows(content)
    agent.peers = [AN_ORIGIN]
    agent.origins.failure = failure
    with pytest.raises(expected):
        await agent.open(content)


async def test_a_layer_of_one_piece_is_asked_of_an_origin_before_anybody_is_asked_where_it_is(
    agent: Agent,
) -> None:
    content = pieces(1)
    agent.origins.blobs[content.digest] = content.data
    await agent.service.fetch(content.digest, "team/app", said(content))
    assert await agent.read(content) == content.data  # No tracker knows it.
    assert len(agent.origins.patience) == 1


@pytest.mark.parametrize("given", [None, b"something else"], ids=["nothing", "another blob"])
async def test_a_layer_of_one_piece_that_no_origin_gives_is_looked_for(
    stage: Stage, agent: Agent, given: bytes | None
) -> None:
    content = pieces(1)
    if given is not None:
        agent.origins.blobs[content.digest] = given
    await agent.service.fetch(content.digest, "team/app", said(content))
    seed = await stage.seed(content)
    agent.knows(content)
    agent.peers = [AN_ORIGIN, seed.peer]
    agent.origins.blobs.clear()
    assert await agent.read(content) == content.data
    assert agent.host.received_from(seed) == content.metainfo.size


async def test_what_an_origin_gives_over_http_keeps_to_the_limit_on_what_is_received(
    agent: Agent,
) -> None:
    content = pieces(1)
    agent.knows(content)
    agent.origins.blobs[content.digest] = content.data
    ingress = agent.host.node.ingress = CountingThrottle()
    assert await agent.read(content) == content.data
    assert ingress.admitted == [(Share(content.digest, small=True), content.metainfo.size)]


class CountingThrottle(Throttle):
    """Notes what is let through besides that of peers."""

    def __init__(self) -> None:
        super().__init__(1e9, 0)
        self.admitted: list[tuple[Share, int]] = []

    async def admit(self, share: Share, count: int) -> None:
        self.admitted.append((share, count))
        await super().admit(share, count)


async def test_a_blob_passes_through_when_the_disk_is_full_as_its_file_is_made(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, passed = pieces(3), object()
    agent.knows(content)

    def partial(_: object) -> None:
        raise OSError(errno.EFBIG, "File too large")

    async def from_an_origin(*_: object, **__: object) -> object:
        return passed

    monkeypatch.setattr(agent.library, "partial", partial)
    monkeypatch.setattr(agent.origins, "open", from_an_origin)
    assert await agent.open(content) is passed


# -- readers that were there before the download was


async def test_what_a_reader_waits_for_is_asked_for_first_when_a_download_is_taken_up_again(
    stage: Stage, agent: Agent
) -> None:
    content = pieces(200)
    await agent.keep(content, {0, 1, 2, *range(120, 200)})
    seed = await stage.puppet(asked := Giver(content))
    agent.knows(content)
    agent.peers = [seed.peer]
    assert await agent.read(content) == content.data
    assert asked[:4] == [3, 4, 5, 6]


async def test_what_a_reader_waits_for_is_asked_for_first_when_a_cached_blob_is_mended(
    stage: Stage, agent: Agent
) -> None:
    content = pieces(200)
    await agent.keep(content, range(200))
    with agent.library._store.path(content.digest).open("r+b") as file:
        file.seek(5 * PIECE)
        file.write(bytes(150 * PIECE))
    seed = await stage.puppet(asked := Giver(content))
    agent.knows(content)
    agent.peers = [seed.peer]
    assert await agent.read(content) == content.data
    assert asked[:4] == [5, 6, 7, 8]


async def test_a_range_has_no_more_fetched_before_the_rest_than_it_reads(
    stage: Stage, agent: Agent
) -> None:
    content = pieces(200)
    seed = await stage.puppet(asked := Giver(content))
    agent.knows(content)
    agent.peers = [seed.peer]
    assert await agent.read(content, 100 * PIECE, 100 * PIECE + 1) == content.piece(100)[:1]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*agent.service._tasks.values())
    assert asked[0] == 100
    assert not set(asked[1:9]) <= set(range(100, 164))


class Giver(list[int]):
    """Plays a host that has a blob: gives each piece that is asked for, and notes which it was."""

    def __init__(self, content: Content) -> None:
        super().__init__()
        self._content = content

    async def __call__(self, puppet: Puppet) -> None:
        puppet.open(self._content, self._content.full)
        async for message, _ in puppet.listen():
            if isinstance(message, Request):
                self.append(message.index)
                puppet.give(self._content, message.index)
