# SPDX-License-Identifier: Apache-2.0
"""A blob is verified before anyone sees it; whatever goes wrong, nothing is kept."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import DigestInvalid, InsufficientStorage, SizeInvalid, TooLarge
from shoal.origin import receiving
from shoal.origin.receiving import Receiver
from shoal.store.blobs import BlobStore
from shoal.store.ingest import Stalled
from shoal.store.writer import BlobWriter
from shoal.swarm.metainfo import MIN_PIECE, metainfo_of

DATA = os.urandom(4 * MIN_PIECE + 1)
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def receiver(store: BlobStore, *, idle_timeout: float = 5.0, max_blob: int = 0) -> Receiver:
    return Receiver(store, idle_timeout=idle_timeout, max_blob=max_blob)


def leftovers(store: BlobStore) -> list[str]:
    return os.listdir(store.temp().parent)


async def body(data: bytes = DATA, step: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", [0, 1, MIN_PIECE, len(DATA)])
async def test_the_metainfo_is_the_same_with_and_without_a_length(
    store: BlobStore, size: int, announced: bool
) -> None:
    data = DATA[:size]
    received = await receiver(store).receive(
        Digest.of(data), body(data), size if announced else None
    )
    assert received.metainfo == metainfo_of(data)
    assert received.file.read_bytes() == data
    received.discard()
    assert leftovers(store) == []


async def test_a_wrong_digest_names_both(store: BlobStore) -> None:
    other = Digest.of(b"other")
    with pytest.raises(DigestInvalid) as refused:
        await receiver(store).receive(other, body(), len(DATA))
    assert str(other) in refused.value.message
    assert str(DIGEST) in refused.value.message
    assert leftovers(store) == []


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
async def test_another_length_than_announced_is_refused(store: BlobStore, size: int) -> None:
    with pytest.raises(SizeInvalid):
        await receiver(store).receive(DIGEST, body(), size)
    assert leftovers(store) == []


@pytest.mark.parametrize("announced", [True, False])
async def test_a_blob_above_the_limit_is_refused(store: BlobStore, announced: bool) -> None:
    with pytest.raises(TooLarge):
        await receiver(store, max_blob=MIN_PIECE).receive(
            DIGEST, body(), len(DATA) if announced else None
        )
    assert leftovers(store) == []


async def test_a_source_that_breaks_leaves_nothing(store: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA[:MIN_PIECE]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await receiver(store).receive(DIGEST, broken(), len(DATA))
    assert leftovers(store) == []


async def test_a_source_that_stalls_leaves_nothing(store: BlobStore) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield DATA[:MIN_PIECE]
        await asyncio.Event().wait()

    with pytest.raises(Stalled):
        await receiver(store, idle_timeout=0.05).receive(DIGEST, stalling(), len(DATA))
    assert leftovers(store) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_says_so(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(_self: BlobWriter, _chunks: Sequence[bytes]) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(BlobWriter, "append", full)
    with pytest.raises(InsufficientStorage, match="no room"):
        await receiver(store).receive(DIGEST, body(), len(DATA))
    assert leftovers(store) == []


async def test_what_is_written_is_synced_while_more_comes(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(receiving, "SYNC_EVERY", MIN_PIECE)
    monkeypatch.setattr(BlobWriter, "sync", lambda self: synced.append(self.size))
    await receiver(store).receive(DIGEST, body(), len(DATA))
    assert synced


async def test_an_error_of_an_early_sync_is_not_lost(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: BlobWriter) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(receiving, "SYNC_EVERY", MIN_PIECE)
    monkeypatch.setattr(BlobWriter, "sync", broken)
    with pytest.raises(OSError, match="the disk is broken"):
        await receiver(store).receive(DIGEST, body(), len(DATA))
    assert leftovers(store) == []
