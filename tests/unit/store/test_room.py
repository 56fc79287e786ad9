# SPDX-License-Identifier: Apache-2.0
"""Room is made before it is needed, from what nobody needs now."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import InsufficientStorage, WouldEvict
from shoal.store import room as room_module
from shoal.store.eviction import CachedBlob, Limits, Space
from shoal.store.room import Room
from shoal.store.volumes import Volumes

TOTAL = 1_000


class Disk:
    """A cache on a volume of a thousand bytes, whose files may vanish or come to be in use."""

    def __init__(self, count: int, size: int = 100) -> None:
        self.copies = {
            Digest.of(str(n).encode()): CachedBlob(Digest.of(str(n).encode()), size, float(n))
            for n in range(count)
        }
        self.order = list(self.copies)
        self.protected: set[Digest] = set()
        self.late: set[Digest] = set()
        self.looks = 0
        self.evicted: list[int] = []
        self.vanishes: set[Digest] = set()
        self.broken: set[Digest] = set()
        self.foreign = 0

    def blobs(self) -> Iterator[CachedBlob]:
        self.looks += 1
        for digest, copy in self.copies.items():
            yield CachedBlob(digest, copy.size, copy.last_used, digest in self.protected)

    async def evict(self, digest: Digest) -> bool:
        if digest in self.vanishes:
            self.copies.pop(digest, None)
            return False
        if digest in self.broken:
            raise OSError(errno.EIO, "Input/output error")
        if digest in self.protected | self.late:
            return False
        self.evicted.append(self.order.index(digest))
        return self.copies.pop(digest, None) is not None

    def spaces(self) -> list[Space]:
        used = sum(copy.size for copy in self.copies.values()) + self.foreign
        return [Space(TOTAL, TOTAL - used)]


@pytest.fixture
def disk() -> Disk:
    return Disk(8)


def room_of(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits) -> Room:
    volumes = Volumes([tmp_path])
    monkeypatch.setattr(volumes, "spaces", disk.spaces)
    return Room(volumes, limits, disk)


NEW = Digest.of(b"new")


async def test_room_is_made_before_a_blob_comes(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = room_of(disk, tmp_path, monkeypatch, Limits(min_free=190))
    async with room.reserve(NEW, 10, tmp_path / "file"):
        assert disk.evicted == []
    async with room.reserve(NEW, 50, tmp_path / "file"):
        assert disk.evicted == [0]


async def test_what_is_not_worth_it_evicts_nobody(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = room_of(disk, tmp_path, monkeypatch, Limits(budget=800))
    with pytest.raises(WouldEvict):
        async with room.reserve(NEW, 100, tmp_path / "file", evict=False):
            pass
    assert disk.evicted == []
    disk.copies.pop(disk.order[3])
    roomy = room_of(disk, tmp_path, monkeypatch, Limits(budget=800))
    async with roomy.reserve(NEW, 100, tmp_path / "file", evict=False):
        assert disk.evicted == []


async def test_a_protected_copy_stays_whatever_its_age(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.protected = {disk.order[0], disk.order[2]}
    room = room_of(disk, tmp_path, monkeypatch, Limits(budget=800))
    async with room.reserve(NEW, 100, tmp_path / "file"):
        assert disk.evicted == [1, 3]


async def test_one_that_came_into_use_meanwhile_stays(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.late = {disk.order[0]}
    room = room_of(disk, tmp_path, monkeypatch, Limits(min_free=200))
    async with room.reserve(NEW, 100, tmp_path / "file"):
        assert disk.order[0] in disk.copies


async def test_files_that_vanish_are_no_error(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.vanishes = {disk.order[0], disk.order[1]}
    room = room_of(disk, tmp_path, monkeypatch, Limits(min_free=200))
    async with room.reserve(NEW, 100, tmp_path / "file"):
        assert disk.evicted in ([], [2])


async def test_one_that_cannot_be_removed_keeps_no_other_from_going(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.broken = {disk.order[0]}
    room = room_of(disk, tmp_path, monkeypatch, Limits(budget=800))
    async with room.reserve(NEW, 100, tmp_path / "file"):
        assert disk.evicted == [1]


async def test_what_is_promised_to_others_counts(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = room_of(disk, tmp_path, monkeypatch, Limits())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(room.reserve(NEW, 100, tmp_path / "a"))
        with pytest.raises(InsufficientStorage, match="nothing more there may be evicted") as full:
            await stack.enter_async_context(room.reserve(NEW, 90, tmp_path / "b"))
        assert full.value.status == 507
        assert int(full.value.headers["Retry-After"]) >= 30
    async with room.reserve(NEW, 180, tmp_path / "c"):
        pass


async def test_what_is_written_of_a_promise_counts_once(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.foreign = 0
    room = room_of(disk, tmp_path, monkeypatch, Limits())
    file = tmp_path / "file"
    async with room.reserve(NEW, 150, file):
        file.write_bytes(bytes(150))
        disk.foreign = 150
        async with room.reserve(NEW, 20, tmp_path / "other"):
            pass


async def test_the_budget_is_a_hard_limit(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = room_of(disk, tmp_path, monkeypatch, Limits(budget=850))
    disk.protected = set(disk.order)
    with pytest.raises(InsufficientStorage, match="the budget of 850 bytes"):
        async with room.reserve(NEW, 60, tmp_path / "file"):
            pass


async def test_too_little_free_space_is_no_reason_to_refuse_while_there_is_some(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = room_of(disk, tmp_path, monkeypatch, Limits(min_free=500))
    disk.protected = set(disk.order)
    async with room.reserve(NEW, 100, tmp_path / "file"):
        pass
    async with room.reserve(NEW, 100, tmp_path / "file"):
        assert disk.looks == 1, "a cache of which nothing can go is not looked through each time"


async def test_a_full_cache_heals_when_copies_may_go_again(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "PATIENCE", 0.0)
    room = room_of(disk, tmp_path, monkeypatch, Limits(min_free=100))
    disk.protected, disk.foreign = set(disk.order), 195
    with pytest.raises(InsufficientStorage):
        async with room.reserve(NEW, 50, tmp_path / "file"):
            pass
    disk.protected = set()
    async with room.reserve(NEW, 50, tmp_path / "file"):
        assert disk.evicted[:1] == [0]


async def test_many_at_once_never_promise_more_than_there_is(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.protected = set(disk.order)
    room = room_of(disk, tmp_path, monkeypatch, Limits())
    inside = asyncio.Event()
    begun = 0

    async def one(number: int) -> bool:
        nonlocal begun
        try:
            async with room.reserve(NEW, 30, tmp_path / str(number)):
                begun += 1
                await inside.wait()
                return True
        except InsufficientStorage:
            return False

    tasks = [asyncio.create_task(one(number)) for number in range(20)]
    while sum(task.done() for task in tasks) + begun < len(tasks):  # noqa: ASYNC110 both count
        await asyncio.sleep(0)
    inside.set()
    assert 150 <= sum(await asyncio.gather(*tasks)) * 30 <= 200


async def test_a_check_evicts_without_anything_coming(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = room_of(disk, tmp_path, monkeypatch, Limits(min_free=300))
    await room.check()
    assert disk.evicted == [0, 1]


async def test_those_that_may_not_go_after_all_do_not_keep_others_from_going(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here all but the youngest: a refusal would last as long as they are the oldest."""
    disk.late = set(disk.order[:3])
    room = room_of(disk, tmp_path, monkeypatch, Limits(budget=800))
    async with room.reserve(NEW, 100, tmp_path / "file"):
        assert disk.evicted
        assert min(disk.evicted) >= 3
