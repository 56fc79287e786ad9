# SPDX-License-Identifier: Apache-2.0
"""Uploads to object stores share one bound of what they have in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from obstore.store import MemoryStore

from shoal.backend.base import BlobName, TagName
from shoal.backend.objects import ObjectBackend, Transfer
from shoal.backend.paths import Layout
from shoal.model.digest import Digest
from shoal.store.budget import ByteBudget
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable

MIB = 1024 * 1024


class Held:
    """A source that gives nothing before it is let go."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        self.begun.set()
        await self.let_go.wait()
        for _ in range(self.size // MIB):
            yield bytes(MIB)


def backend(memory: ByteBudget) -> ObjectBackend:
    transfer = Transfer(part_size=5 * MIB, concurrency=4)
    return ObjectBackend(MemoryStore(), Layout(), place="memory:", transfer=transfer, memory=memory)


def blob(content: bytes) -> BlobName:
    return BlobName("team/app", Digest.of(content))


async def test_an_upload_waits_while_others_have_the_memory_and_tags_do_not() -> None:
    memory = ByteBudget(25 * MIB)
    # Two backends: the bound is the process's.
    one, other = backend(memory), backend(memory)
    first, second = Held(30 * MIB), Held(MIB)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        soon = Deadline.after(10)
        group.create_task(one.put(blob(b"1"), first, deadline=soon))
        await first.begun.wait()
        assert memory.taken == 25 * MIB
        with pytest.raises(Unreachable, match="other uploads had all the memory"):
            await other.put(blob(b"2"), second, deadline=Deadline.after(0.1))
        await other.put(TagName("team/app", "v1"), b"sha256:", deadline=soon)
        waiting = group.create_task(other.put(blob(b"2"), second, deadline=soon))
        first.let_go.set()
        second.let_go.set()
        await waiting
    assert memory.taken == 0
    assert await other.stat(blob(b"2"), deadline=Deadline.after(5)) == MIB


async def test_parts_that_are_large_are_sent_fewer_at_a_time() -> None:
    memory = ByteBudget(12 * MIB)
    source = Held(30 * MIB)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(backend(memory).put(blob(b"1"), source, deadline=Deadline.after(10)))
        await source.begun.wait()
        assert memory.taken == 10 * MIB
        source.let_go.set()
    assert memory.taken == 0
