# SPDX-License-Identifier: Apache-2.0
"""A blob that its origin still fetches: peers get pieces whose digests are known by then."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from shoal.swarm.blob import BlobSwarm
from shoal.swarm.metainfo import HASH_BYTES, Metainfo
from shoal.swarm.pieces import PieceFile, SharedFile
from tests.integration.swarm_hosts import (
    PATIENCE,
    Content,
    Host,
    Stage,
    pieces,
    until,
)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


def grown(content: Content, known: int) -> Metainfo:
    """The metainfo when the digests of so many pieces are known."""
    return msgspec.structs.replace(
        content.metainfo, pieces=content.metainfo.pieces[: known * HASH_BYTES]
    )


@dataclass
class Growing:
    """A blob at its origin, written piece by piece."""

    content: Content
    file: SharedFile
    blob: BlobSwarm

    @classmethod
    def at(cls, origin: Host, content: Content) -> Growing:
        file = SharedFile(origin.path(content), create=content.metainfo.size)
        held = PieceFile(grown(content, 0), file, origin.node.executor, present=0, verified=0)
        return cls(content, file, origin.node.add(held))

    def grow(self, known: int) -> Metainfo:
        for index in range(self.blob.metainfo.known, known):
            start, _ = self.content.metainfo.span(index)
            os.pwrite(self.file.fd, self.content.piece(index), start)
        metainfo = grown(self.content, known)
        self.blob.arrived(metainfo)
        return metainfo


def leech(host: Host, content: Content, origin: Host) -> BlobSwarm:
    """Begin to fetch what nobody has yet."""
    file = SharedFile(host.path(content), create=content.metainfo.size)
    held = PieceFile(grown(content, 0), file, host.node.executor, present=0, verified=0)
    return host.node.leech(held, [origin.peer])


async def has(blob: BlobSwarm, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        for index in range(count):
            await blob.pieces.wait(index)


async def test_pieces_come_as_they_arrive_and_the_origin_sends_each_about_once(
    stage: Stage,
) -> None:
    content = pieces(60)
    origin = await stage.host(origin=(0, 1))
    growing = Growing.at(origin, content)
    hosts = [await stage.host() for _ in range(3)]
    blobs = [leech(host, content, origin) for host in hosts]
    for host, blob in zip(hosts, blobs, strict=True):
        blob.add_peers([other.peer for other in hosts if other is not host])
    for known in (1, 7, 30, 60):
        metainfo = growing.grow(known)
        for blob in blobs:
            await blob.learn(metainfo)
        for blob in blobs:
            await has(blob, known)
            assert blob.pieces.verified == (1 << known) - 1
    for host in hosts:
        await host.whole(content)
    assert origin.sent_in_all <= 1.7 * content.metainfo.size


async def test_a_host_that_has_not_learned_of_a_piece_does_not_ask_for_it(stage: Stage) -> None:
    content = pieces(20)
    origin = await stage.host(origin=(0, 1))
    growing = Growing.at(origin, content)
    ahead, behind = await stage.host(), await stage.host()
    first, second = leech(ahead, content, origin), leech(behind, content, origin)
    second.add_peers([ahead.peer])
    metainfo = growing.grow(10)
    await first.learn(metainfo)
    await has(first, 10)
    await until(lambda: ahead.peer.id in second.links)
    assert second.pieces.verified == 0
    assert not second.picker or not second.picker.asked_of(origin.peer.id)
    await second.learn(metainfo)
    await has(second, 10)


async def test_what_an_earlier_process_left_is_checked_when_its_digest_is_known(
    stage: Stage,
) -> None:
    content = pieces(10)
    origin = await stage.host(origin=(0, 1))
    growing = Growing.at(origin, content)
    host = await stage.host()
    file = SharedFile(host.path(content), create=content.metainfo.size)
    os.pwrite(file.fd, content.piece(5), content.metainfo.span(5)[0])
    held = PieceFile(grown(content, 0), file, host.node.executor, present=1 << 5, verified=0)
    blob = host.node.leech(held, [origin.peer])
    assert not await held.ensure(5)
    metainfo = growing.grow(10)
    await blob.learn(metainfo)
    await host.whole(content)


async def test_a_metainfo_that_says_something_else_than_before_is_refused(stage: Stage) -> None:
    content, other = pieces(10), pieces(10, seed=1)
    host = await stage.host()
    file = SharedFile(host.path(content), create=content.metainfo.size)
    held = PieceFile(grown(content, 3), file, host.node.executor, present=0, verified=0)
    blob = host.node.add(held)
    with pytest.raises(ValueError, match="not the metainfo that it was before"):
        await blob.learn(msgspec.structs.replace(content.metainfo, pieces=other.metainfo.pieces))
    assert blob.metainfo.known == 3
