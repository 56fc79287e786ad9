# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged, cut, unreadable or taken away: nothing wrong is ever given or written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from shoal.swarm.wire import Unknown
from tests.integration.swarm_hosts import PATIENCE, PIECE, Content, Host, Stage, pieces, until


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


def damage(host: Host, content: Content, index: int) -> None:
    with host.path(content).open("r+b") as file:
        file.seek(content.metainfo.span(index)[0])
        file.write(b"\xff" if content.piece(index)[0] != 0xFF else b"\0")


@pytest.mark.parametrize("origin", [None, (0, 1)], ids=["agent", "origin"])
async def test_a_piece_damaged_on_disk_is_never_given(
    stage: Stage, origin: tuple[int, int] | None
) -> None:
    content = pieces(16)
    damaged = await stage.seed(content, origin=origin)
    damage(damaged, content, 5)
    leecher = await stage.host()
    blob = leecher.leech(content, [damaged])
    await until(lambda: blob.pieces.verified == content.full & ~(1 << 5))
    await until(lambda: (content.digest, 5) in damaged.shelf.damages)
    whole = await stage.seed(content)
    blob.add_peers([whole.peer])
    await leecher.whole(content)
    assert damaged.peer.id in leecher.node.links
    assert leecher.received_from(whole) == PIECE


async def test_what_was_cut_off_on_disk_is_never_given(stage: Stage) -> None:
    content = pieces(16)
    cut = await stage.seed(content)
    cut.put(content, content.data[: 10 * PIECE + 100])
    leecher = await stage.host()
    blob = leecher.leech(content, [cut])
    await until(lambda: blob.pieces.verified == (1 << 10) - 1)
    await until(lambda: {index for _, index in cut.shelf.damages} == set(range(10, 16)))
    blob.add_peers([(await stage.seed(content)).peer])
    await leecher.whole(content)


async def test_what_is_damaged_after_it_was_checked_is_not_given_either(stage: Stage) -> None:
    content = pieces(8)
    seed = await stage.seed(content)
    await (await stage.host()).fetch(content, [seed])
    assert seed.node.blobs[content.digest].pieces.all_verified
    damage(seed, content, 3)
    leecher = await stage.host()
    blob = leecher.leech(content, [seed])
    await until(lambda: blob.pieces.verified == content.full & ~(1 << 3))
    await until(lambda: (content.digest, 3) in seed.shelf.damages)


async def test_a_piece_counts_as_verified_as_soon_as_its_check_has_ended(stage: Stage) -> None:
    """Else whoever asks in that moment is told that it is right, and finds no byte to read."""
    content = pieces(2)
    host = await stage.seed(content)
    file = host.shelf.blobs[content.digest]()
    check = file._start_check(0)
    async with asyncio.timeout(PATIENCE):
        while not check.done():  # noqa: ASYNC110 it must end before its callbacks run
            await asyncio.sleep(0)
    assert await file.ensure(0)
    assert file.verified == 1
    assert file.verified_until(0) == PIECE
    file.close()


async def test_a_blob_that_cannot_be_read_counts_as_not_here(stage: Stage) -> None:
    content = pieces(4)
    broken = await stage.host()
    broken.shelf.failure = OSError(5, "Input/output error")
    puppet = await stage.dial(broken)
    puppet.open(content)
    assert await puppet.hear(Unknown) == Unknown(0)


async def test_a_piece_that_comes_as_its_blob_is_taken_away_is_written_nowhere(
    stage: Stage,
) -> None:
    content = pieces(2)
    leecher = await stage.host()
    blob = leecher.leech(content, [])
    blob.pieces.close()
    with pytest.raises(OSError, match="taken away"):
        await blob.pieces.store(0, memoryview(content.piece(0)))
    with pytest.raises(OSError, match="taken away"):
        blob.pieces.file.acquire()
    del leecher.node.blobs[content.digest]
