# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import TooLarge
from shoal.store.budget import ByteBudget
from shoal.store.ingest import BATCH_BYTES, Stalled, ingest
from shoal.store.writer import BlobWriter, Chunk

CHUNKS = [bytes([n]) * 300_000 for n in range(20)]


class GatedWriter(BlobWriter):
    """Its appends wait for the gate, and note how they overlap."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []
        self.inside = 0
        self.overlapped = False

    def append(self, chunks: Sequence[Chunk]) -> None:
        self.inside += 1
        self.entered.set()
        self.overlapped |= self.inside > 1
        assert self.gate.wait(10)
        self.batches.append(sum(map(len, chunks)))
        super().append(chunks)
        self.inside -= 1


@pytest.fixture
def writer(tmp_path: Path) -> Iterable[GatedWriter]:
    writer = GatedWriter(tmp_path / "blob")
    yield writer
    writer.gate.set()
    writer.close()


async def feed(chunks: Iterable[bytes], taken: list[int] | None = None) -> AsyncIterator[bytes]:
    for number, chunk in enumerate(chunks):
        if taken is not None:
            taken.append(number)
        yield chunk


async def test_all_bytes_arrive_in_order_in_large_batches(writer: GatedWriter) -> None:
    writer.gate.set()
    count = await ingest(feed(CHUNKS), writer, limit=None, idle_timeout=5)
    content = b"".join(CHUNKS)
    assert count == len(content) == writer.size
    assert writer.digest() == Digest.of(content)
    assert not writer.overlapped
    assert all(size >= BATCH_BYTES for size in writer.batches[:-1])


async def test_nothing_is_a_body_too(writer: GatedWriter) -> None:
    assert await ingest(feed([]), writer, limit=0, idle_timeout=5) == 0


async def test_a_slow_disk_holds_the_sender_back(writer: GatedWriter) -> None:
    taken: list[int] = []
    task = asyncio.create_task(ingest(feed(CHUNKS, taken), writer, limit=None, idle_timeout=5))
    assert await asyncio.to_thread(writer.entered.wait, 5)
    for _ in range(50):
        await asyncio.sleep(0)
    # Four chunks fill a batch: one batch is being written, one is full, and nothing more is taken.
    assert len(taken) == 8
    writer.gate.set()
    assert await task == sum(map(len, CHUNKS))


async def test_a_stalled_sender_is_given_up_and_what_came_is_kept(writer: GatedWriter) -> None:
    writer.gate.set()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"x" * 10
        await asyncio.Event().wait()

    with pytest.raises(Stalled, match=r"no byte came for 0\.05 s, after 10 bytes"):
        await ingest(stalling(), writer, limit=None, idle_timeout=0.05)
    assert writer.size == 10


async def test_time_that_the_disk_takes_is_not_the_senders(writer: GatedWriter) -> None:
    task = asyncio.create_task(ingest(feed(CHUNKS), writer, limit=None, idle_timeout=0.05))
    await asyncio.wait([task], timeout=0.2)
    assert not task.done()
    writer.gate.set()
    assert await task == sum(map(len, CHUNKS))


async def test_more_than_the_limit_is_too_large(writer: GatedWriter) -> None:
    writer.gate.set()
    with pytest.raises(TooLarge, match="more than the 300000 bytes"):
        await ingest(feed(CHUNKS), writer, limit=300_000, idle_timeout=5)
    assert writer.size == 300_000
    assert not writer.inside


async def test_a_client_that_vanishes_leaves_what_it_sent(writer: GatedWriter) -> None:
    async def vanishing() -> AsyncIterator[bytes]:
        for chunk in CHUNKS[:9]:
            yield chunk
        raise ConnectionResetError("gone")

    task = asyncio.create_task(ingest(vanishing(), writer, limit=None, idle_timeout=5))
    await asyncio.wait([task], timeout=0.05)
    assert not task.done(), "the error waits for the batches under way"
    writer.gate.set()
    with pytest.raises(ConnectionResetError, match="gone"):
        await task
    assert writer.size == 9 * 300_000
    assert not writer.inside


async def test_a_cancelled_ingest_leaves_no_thread_at_work(writer: GatedWriter) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for chunk in CHUNKS[:4]:
            yield chunk
        await asyncio.Event().wait()

    task = asyncio.create_task(ingest(endless(), writer, limit=None, idle_timeout=50))
    assert await asyncio.to_thread(writer.entered.wait, 5)
    task.cancel()
    await asyncio.wait([task], timeout=0.05)
    assert not task.done()
    writer.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not writer.inside


async def test_what_a_slow_sender_sent_is_written_without_more(writer: GatedWriter) -> None:
    writer.gate.set()
    budget = ByteBudget(BATCH_BYTES)
    more = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 10
        await more.wait()
        yield b"y" * 10

    task = asyncio.create_task(ingest(slow(), writer, limit=None, idle_timeout=5, budget=budget))
    async with asyncio.timeout(5):
        await asyncio.to_thread(writer.entered.wait)
        await budget.take(BATCH_BYTES)  # it keeps no memory while it says nothing
    assert writer.size == 10
    budget.give_back(BATCH_BYTES)
    more.set()
    assert await task == 20
    assert writer.path.read_bytes() == b"x" * 10 + b"y" * 10
    assert budget.taken == 0


async def test_many_share_a_budget_and_all_come_to_their_end(tmp_path: Path) -> None:
    budget = ByteBudget(2 * BATCH_BYTES)
    held: list[int] = []

    async def watched() -> AsyncIterator[bytes]:
        for chunk in CHUNKS:
            held.append(budget.taken)
            yield chunk

    writers = [BlobWriter(tmp_path / str(number)) for number in range(12)]
    async with asyncio.timeout(30):
        counts = await asyncio.gather(
            *(
                ingest(watched(), writer, limit=None, idle_timeout=5, budget=budget)
                for writer in writers
            )
        )
    content = b"".join(CHUNKS)
    assert counts == [len(content)] * 12
    assert {writer.digest() for writer in writers} == {Digest.of(content)}
    assert max(held) <= budget.limit
    assert budget.taken == 0
    for writer in writers:
        writer.close()


async def test_one_that_is_cancelled_or_fails_gives_its_share_back(writer: GatedWriter) -> None:
    budget = ByteBudget(BATCH_BYTES)
    await budget.take(BATCH_BYTES - 5)
    task = asyncio.create_task(
        ingest(feed(CHUNKS), writer, limit=None, idle_timeout=5, budget=budget)
    )
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.taken == BATCH_BYTES - 5
    writer.gate.set()
    with pytest.raises(TooLarge):
        await ingest(feed([b"123", b"456"]), writer, limit=4, idle_timeout=5, budget=budget)
    assert budget.taken == BATCH_BYTES - 5


async def test_nothing_is_written_after_a_gap(
    writer: GatedWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.gate.set()
    budget = ByteBudget(8 * BATCH_BYTES)
    write = os.writev
    calls: list[int] = []

    def full_once(descriptor: int, views: Sequence[Chunk]) -> int:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, views)

    monkeypatch.setattr(os, "writev", full_once)
    with pytest.raises(OSError, match="No space left"):
        await ingest(feed(CHUNKS), writer, limit=None, idle_timeout=5, budget=budget)
    assert writer.path.read_bytes() == b"".join(CHUNKS)[: writer.size]
    assert writer.size == writer.batches[0]
    assert len(calls) == 2
    assert budget.taken == 0


async def test_a_full_disk_surfaces_as_it_is(
    writer: GatedWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.gate.set()

    def full(_descriptor: int, _views: Sequence[Chunk]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space left") as caught:
        await ingest(feed(CHUNKS), writer, limit=None, idle_timeout=5)
    assert caught.value.errno == errno.ENOSPC
    assert writer.size == writer.path.stat().st_size == 0
