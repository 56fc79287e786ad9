# SPDX-License-Identifier: Apache-2.0
"""What an agent's cache makes of the files that it finds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal.agent.library import Library
from shoal.model.digest import Digest
from shoal.swarm import bits as bitset
from shoal.swarm.metainfo import MIN_PIECE, metainfo_of
from shoal.swarm.pieces import PieceFile

DATA = os.urandom(5 * MIN_PIECE + 10)
METAINFO = metainfo_of(DATA)
DIGEST = Digest.parse(METAINFO.digest)
EVERYTHING = bitset.full(6)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
def library(tmp_path: Path, executor: ThreadPoolExecutor) -> Library:
    return Library(tmp_path, executor)


async def fetched(library: Library) -> None:
    """Bring the blob into the cache as a download does."""
    pieces = library.partial(METAINFO)
    for index in range(METAINFO.count):
        start, stop = METAINFO.span(index)
        assert await pieces.store(index, memoryview(DATA[start:stop]))
    library.finish(pieces)
    pieces.close()


def spoil_metainfo(root: Path) -> None:
    [sidecar] = root.glob("blobs/*/*/*.metainfo")
    sidecar.write_bytes(b"not what was written")


def opened(library: Library) -> PieceFile:
    pieces = library.complete(DIGEST)
    assert pieces is not None
    return pieces


async def test_a_finished_blob_is_found_again_with_everything_still_to_be_checked(
    tmp_path: Path, library: Library, executor: ThreadPoolExecutor
) -> None:
    await fetched(library)
    pieces = opened(Library(tmp_path, executor))
    assert (pieces.present, pieces.verified) == (EVERYTHING, 0)
    assert await pieces.ensure(5)
    pieces.close()
    assert library.size(DIGEST) == len(DATA)
    assert library.digests() == [DIGEST]


async def test_only_pieces_without_holes_count_as_present_after_a_restart(
    tmp_path: Path, library: Library, executor: ThreadPoolExecutor
) -> None:
    pieces = library.partial(METAINFO)
    assert pieces.present == 0
    for index in (0, 3, 5):
        start, stop = METAINFO.span(index)
        await pieces.store(index, memoryview(DATA[start:stop]))
    pieces.close()
    again = Library(tmp_path, executor).partial(METAINFO)
    assert (again.present, again.verified) == (0b101001, 0)
    assert [await again.ensure(index) for index in range(6)] == [
        True, False, False, True, False, True,
    ]  # fmt: skip
    again.close()
    assert library.complete(DIGEST) is None


async def test_without_its_metainfo_a_cached_blob_becomes_a_partial_one(
    tmp_path: Path, library: Library
) -> None:
    await fetched(library)
    spoil_metainfo(tmp_path)
    assert library.complete(DIGEST) is None
    pieces = library.partial(METAINFO)
    assert pieces.present == EVERYTHING
    assert await pieces.ensure(2)
    pieces.close()


async def test_a_demoted_blob_keeps_its_bytes_and_its_open_file(library: Library) -> None:
    await fetched(library)
    pieces = opened(library)
    assert library.demote(DIGEST)
    assert await pieces.ensure(1)
    library.finish(pieces)
    pieces.close()
    assert library.size(DIGEST) == len(DATA)
    assert library.delete(DIGEST)
    assert not library.demote(DIGEST)
    assert not library.delete(DIGEST)


def test_a_damaged_manifest_is_removed_and_not_served(tmp_path: Path, library: Library) -> None:
    manifest = b'{"schemaVersion": 2}'
    digest = Digest.of(manifest)
    library.keep_small(digest, manifest)
    assert library.read_small(digest) == manifest
    [file] = tmp_path.glob(f"blobs/*/*/{digest.hex}")
    file.write_bytes(manifest[:-1])
    assert library.read_small(digest) is None
    assert not file.exists()


async def test_what_is_not_the_blob_is_not_kept(library: Library) -> None:
    pieces = library.partial(METAINFO)
    pieces.close()
    library.discard_partial(DIGEST)
    assert not library.delete(DIGEST)
