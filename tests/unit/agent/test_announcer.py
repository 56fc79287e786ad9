# SPDX-License-Identifier: Apache-2.0
"""What an agent tells the trackers, how often, and what it does with the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal.agent import announcer
from shoal.agent.announcer import Announcer
from shoal.model.digest import Digest
from shoal.swarm.node import SwarmNode
from shoal.swarm.peers import PeerInfo
from shoal.tracker.client import TrackerClient
from shoal.tracker.messages import AnnounceAnswer, AnnouncedBlob, Share
from shoal.web.failures import Unreachable

ME = PeerInfo("1" * 32, "10.0.0.1", 5012, "east")
OTHER = PeerInfo("2" * 32, "10.0.0.2", 5012, "east")
LAYERS = [Digest.of(bytes([number])) for number in range(60)]


class Blob:
    """A download's side in the swarm."""

    picker = object()

    def __init__(self) -> None:
        self.told: list[PeerInfo] = []
        self.share: Share | None = None

    def add_peers(self, peers: Iterable[PeerInfo]) -> None:
        self.told += peers

    def keep_to_zone(self, share: Share | None) -> None:
        self.share = share


class Trackers:
    """Trackers that note what they are told."""

    def __init__(self) -> None:
        self.announced: asyncio.Queue[list[AnnouncedBlob]] = asyncio.Queue()
        self.left: asyncio.Queue[set[Digest] | None] = asyncio.Queue()
        self.restarted = False
        self.down = False

    async def announce(
        self, peer: PeerInfo, blobs: Sequence[AnnouncedBlob], **_: Any
    ) -> AnnounceAnswer:
        assert peer == ME
        self.announced.put_nowait(list(blobs))
        if self.down:
            raise Unreachable("POST", "/announce", "it is down")
        wanting = [blob.digest for blob in blobs if not blob.complete]
        return AnnounceAnswer(
            30.0, {text: [OTHER] for text in wanting}, dict.fromkeys(wanting, (3, 8))
        )

    async def leave(self, peer_id: str, digests: Iterable[Digest] | None = None, **_: Any) -> None:
        assert peer_id == ME.id
        self.left.put_nowait(None if digests is None else set(digests))

    async def changed(self) -> bool:
        was, self.restarted = self.restarted, False
        return was


@asynccontextmanager
async def running(
    trackers: Trackers, blobs: dict[Digest, Blob] | None = None, cached: Iterable[Digest] = ()
) -> AsyncIterator[Announcer]:
    node = cast("SwarmNode", SimpleNamespace(peer=ME, blobs=blobs or {}))
    made = Announcer(node, cast("TrackerClient", trackers))
    task = asyncio.create_task(made.run(cached))
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def trackers() -> Trackers:
    return Trackers()


async def test_an_image_of_sixty_layers_is_announced_in_one_or_two_requests(
    trackers: Trackers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "GATHER", 0.2)
    told: set[str] = set()
    requests = 0
    async with running(trackers) as made:
        for layer in LAYERS:
            made.fetches(layer)
            made.has(layer)
            await asyncio.sleep(0.0)
        while len(told) < len(LAYERS):
            blobs = await asyncio.wait_for(trackers.announced.get(), 5.0)
            assert all(blob.complete for blob in blobs)
            told |= {blob.digest for blob in blobs}
            requests += 1
    assert requests <= 2


async def test_trackers_are_told_which_blobs_they_may_not_have_heard_of(
    trackers: Trackers,
) -> None:
    async with running(trackers) as made:
        made.has(LAYERS[0])
        made.has(LAYERS[1], small=True)
        blobs = await asyncio.wait_for(trackers.announced.get(), 5.0)
        assert {blob.digest: blob.small for blob in blobs} == {
            str(LAYERS[0]): False,
            str(LAYERS[1]): True,
        }
        made.has_not(LAYERS[1])
        made.fetches(LAYERS[1])
        made.has(LAYERS[1])
        [blob] = await asyncio.wait_for(trackers.announced.get(), 5.0)
        assert blob.complete
        assert not blob.small


async def test_what_an_earlier_process_left_is_announced_at_the_start(trackers: Trackers) -> None:
    async with running(trackers, cached=LAYERS):
        blobs = await asyncio.wait_for(trackers.announced.get(), 5.0)
    assert {blob.digest for blob in blobs} == {str(layer) for layer in LAYERS}


async def test_a_tracker_that_started_anew_is_told_everything(
    trackers: Trackers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "WATCH", 0.05)
    async with running(trackers, cached=LAYERS[:2]) as made:
        made.fetches(LAYERS[2])
        first = await asyncio.wait_for(trackers.announced.get(), 5.0)
        trackers.restarted = True
        again = await asyncio.wait_for(trackers.announced.get(), 5.0)
    assert len(first) == len(again) == 3
    assert {blob.digest for blob in again if not blob.complete} == {str(LAYERS[2])}


async def test_a_download_that_seeks_is_given_peers_and_its_share(
    trackers: Trackers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "GATHER", 0.0)
    blob = Blob()
    async with running(trackers, {LAYERS[0]: blob}) as made:
        made.fetches(LAYERS[0])
        await asyncio.wait_for(trackers.announced.get(), 5.0)
        made.seek(LAYERS[0], starved=True)
        asked = await asyncio.wait_for(trackers.announced.get(), 5.0)
        assert asked == [AnnouncedBlob(str(LAYERS[0]), complete=False, starved=True)]
    assert blob.told == [OTHER, OTHER]
    assert blob.share == (3, 8)


async def test_a_blob_that_is_gone_is_taken_back(
    trackers: Trackers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "GATHER", 0.0)
    async with running(trackers, cached=LAYERS[:2]) as made:
        await asyncio.wait_for(trackers.announced.get(), 5.0)
        made.has_not(LAYERS[0])
        made.has_not(LAYERS[5])
        assert await asyncio.wait_for(trackers.left.get(), 5.0) == {LAYERS[0]}
        await made.stop()
        assert await asyncio.wait_for(trackers.left.get(), 5.0) is None


async def test_trackers_that_are_down_are_told_when_they_are_back(
    trackers: Trackers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "WATCH", 0.05)
    trackers.down = True
    async with running(trackers, cached=LAYERS[:1]):
        await asyncio.wait_for(trackers.announced.get(), 5.0)
        trackers.down, trackers.restarted = False, True
        blobs = await asyncio.wait_for(trackers.announced.get(), 5.0)
    assert [blob.digest for blob in blobs] == [str(LAYERS[0])]
