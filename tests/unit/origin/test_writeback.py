# SPDX-License-Identifier: Apache-2.0
"""What an origin owes to backends: noted before a copy counts, written once, never forgotten."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, Denied, Unavailable
from shoal.origin.backends import BlobBackends
from shoal.origin.config import OriginConfig
from shoal.origin.eviction import BackedCopies
from shoal.origin.local import LocalBlobs
from shoal.origin.messages import Owing
from shoal.origin.presence import Presence
from shoal.origin.writeback import WriteBack
from shoal.queue.tasks import State, Task
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import metainfo_of
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from tests.unit.origin.counting_backend import REPOSITORY, STORAGE, Backends, CountingBackend
from tests.unit.origin.no_backends import NoBackends

A, B, C = HOSTS = ["a:1", "b:1", "c:1"]
DATA = b"content" * 1000
DIGEST = Digest.of(DATA)
DENIED = r"no backend stores the blobs of other/app.*team/\.\*"


@dataclass
class Ring:
    """The other origins: who has a copy, and who is silent."""

    owners_in_order: list[str] = field(default_factory=lambda: list(HOSTS))
    holders: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    """Those that answer what they still owe."""

    def owners(self, digest: Digest) -> list[str]:
        return self.owners_in_order

    def before(self, name: str, digest: Digest) -> list[str]:
        return self.owners_in_order[: self.owners_in_order.index(name)]

    async def owing_at(
        self, host: str, repository: str, digest: Digest, *, deadline: Deadline
    ) -> Owing | None:
        if host not in self.origins:
            raise Unreachable("POST", host, "refused")
        [owing] = await self.origins[host].writeback.owed([(repository, digest)])
        return owing

    async def stat_many(
        self, digests: Iterable[Digest], *, deadline: Deadline, keep: bool, namespace: str
    ) -> Presence:
        [digest] = digests
        assert keep
        self.told.append(namespace)
        silent = {host: Unreachable("POST", host, "refused") for host in self.silent}
        return Presence({}, {digest: frozenset(self.holders)}, silent)


class Origin:
    """The store and the write-back of ``a:1``, or of another one."""

    def __init__(self, folder: Path, backend: CountingBackend, ring: Ring, name: str = A) -> None:
        self.name = name
        self.folder = folder
        self.backend = backend
        self.ring = ring
        self.store = BlobStore(folder)
        self.local = LocalBlobs(self.store)
        self.writeback: WriteBack

    async def start(self, patterns: Sequence[str], **settings: Any) -> None:
        config = OriginConfig.model_validate(
            {
                "data_dir": self.folder,
                "name": self.name,
                "origins": {"hosts": HOSTS},
                "writeback": {
                    "stagger": "1h",
                    "retry": {"initial": "10ms", "cap": "50ms"},
                    **settings,
                },
            }
        )
        backends = BlobBackends(Backends(self.backend), patterns)
        self.writeback = await WriteBack.start(config, self.local, self.ring, backends)

    def put(self, data: bytes = DATA) -> None:
        file = self.store.temp()
        file.write_bytes(data)
        self.local.keep(file, metainfo_of(data))

    async def push(self, data: bytes = DATA, repositories: Sequence[str] = (REPOSITORY,)) -> None:
        async with self.writeback.taking(Digest.of(data), repositories):
            self.put(data)

    async def tasks(self) -> list[Task]:
        return await self.writeback._queue.tasks()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 the queue's threads make it true
                await asyncio.sleep(0.005)

    async def until_settled(self) -> None:
        await self.until(lambda: not self.local.is_pinned(DIGEST))


@asynccontextmanager
async def started(
    folder: Path,
    backend: CountingBackend | None = None,
    ring: Ring | None = None,
    patterns: Sequence[str] = ("team/.*",),
    **settings: Any,
) -> AsyncIterator[Origin]:
    origin = Origin(folder, backend or CountingBackend(), ring or Ring())
    await origin.start(patterns, **settings)
    try:
        yield origin
    finally:
        await origin.writeback.stop(5)


async def test_the_first_owner_writes_at_once_and_notes_it(tmp_path: Path) -> None:
    async with started(tmp_path) as origin:
        await origin.push()
        await origin.until_settled()
        assert origin.backend.blobs == {DIGEST: DATA}
        assert origin.local.backing.entries(DIGEST) == {f"bucket|{REPOSITORY}"}
        # It is known from then on: neither a push nor a mount asks the backend again.
        asked = origin.backend.stats
        await origin.push()
        await origin.push(repositories=["team/other"])
        assert await origin.tasks() == []
        assert origin.backend.stats == asked
        assert len(origin.backend.puts) == 1


async def test_what_the_backend_has_is_not_written_again(tmp_path: Path) -> None:
    async with started(tmp_path, CountingBackend({DIGEST: DATA})) as origin:
        await origin.push()
        await origin.until_settled()
        assert origin.backend.puts == []
        assert origin.local.backing.entries(DIGEST)


async def test_a_blob_of_another_size_in_the_backend_is_replaced(tmp_path: Path) -> None:
    async with started(tmp_path, CountingBackend({DIGEST: DATA[:10]})) as origin:
        await origin.push()
        await origin.until_settled()
        assert origin.backend.blobs == {DIGEST: DATA}


async def test_another_owner_waits_for_its_turn_and_its_copy_stays(tmp_path: Path) -> None:
    async with started(tmp_path, ring=Ring([B, A, C])) as origin:
        await origin.push()
        [task] = await origin.tasks()
        assert task.state is State.WAITING
        assert task.due - task.added == 3600
        assert origin.backend.stats == 0
        assert origin.local.is_pinned(DIGEST)
        assert origin.writeback.pending(DIGEST) == [REPOSITORY]
        assert origin.local.give_up(DIGEST, cutoff=2e12) is None
        assert [copy.in_use for copy in origin.local.copies()] == [True]
        # When its turn comes (here: as somebody waits for it), it finds what the first one wrote.
        origin.backend.blobs[DIGEST] = DATA
        await origin.writeback.settle(DIGEST, REPOSITORY, Deadline.after(20))
        assert origin.backend.puts == []
        await origin.until_settled()
        assert origin.local.give_up(DIGEST, cutoff=2e12) == len(DATA)


async def test_a_backend_that_is_down_is_tried_until_it_is_back(tmp_path: Path) -> None:
    async with started(tmp_path, CountingBackend(failure="down")) as origin:
        await origin.push()
        await origin.until(lambda: origin.backend.stats > 3)
        with pytest.raises(Unavailable, match=rf"{STORAGE}.*down"):
            await origin.writeback.settle(DIGEST, REPOSITORY, Deadline.after(0.05))
        origin.backend.failure = None
        await origin.writeback.settle(DIGEST, REPOSITORY, Deadline.after(20))
        assert origin.backend.blobs == {DIGEST: DATA}


async def test_a_write_counts_only_when_the_backend_shows_it(tmp_path: Path) -> None:
    async with started(tmp_path, CountingBackend(forgets=True)) as origin:
        await origin.push()
        await origin.until(lambda: len(origin.backend.puts) > 1)
        assert origin.local.is_pinned(DIGEST)
        assert not origin.local.backing.entries(DIGEST)
        origin.backend.forgets = False
        await origin.until_settled()
        assert origin.backend.blobs == {DIGEST: DATA}


async def test_what_was_given_up_stays_pinned_also_after_a_restart(tmp_path: Path) -> None:
    dead: dict[str, Any] = {
        "dead_after": "0s",
        "retry": {"initial": "1ms", "cap": "1ms", "attempts": 2},
    }
    async with started(tmp_path, CountingBackend(failure="down"), **dead) as origin:
        await origin.push()
        async with asyncio.timeout(20):
            while (await origin.tasks())[0].state is not State.DEAD:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert origin.local.is_pinned(DIGEST)
    async with started(tmp_path, **dead) as origin:
        assert origin.local.is_pinned(DIGEST)
        assert origin.writeback.pending(DIGEST) == [REPOSITORY]
        # A push of the same blob begins anew.
        await origin.push()
        await origin.until_settled()
        assert origin.backend.blobs == {DIGEST: DATA}


async def test_the_task_is_durable_before_the_copy_has_its_name(tmp_path: Path) -> None:
    async with (
        started(tmp_path, ring=Ring([B, A, C])) as origin,
        origin.writeback.taking(DIGEST, [REPOSITORY]),
    ):
        assert [task.payload for task in await origin.tasks()] != []
        assert origin.local.is_pinned(DIGEST)
        origin.put()


async def test_a_copy_that_cannot_be_kept_leaves_no_task(tmp_path: Path) -> None:
    async with started(tmp_path, ring=Ring([B, A, C])) as origin:
        with pytest.raises(OSError, match="no space"):
            async with origin.writeback.taking(DIGEST, [REPOSITORY]):
                raise OSError("no space")
        assert await origin.tasks() == []
        assert not origin.local.is_pinned(DIGEST)
        # That of an earlier push stays.
        await origin.push()
        with pytest.raises(OSError, match="no space"):
            async with origin.writeback.taking(DIGEST, [REPOSITORY]):
                raise OSError("no space")
        assert len(await origin.tasks()) == 1
        assert origin.local.is_pinned(DIGEST)


async def test_a_task_without_a_copy_is_left_to_those_that_have_one(tmp_path: Path) -> None:
    async with started(tmp_path, ring=Ring(holders={B})) as origin:
        async with origin.writeback.taking(DIGEST, [REPOSITORY]):
            pass
        await origin.until_settled()
        assert origin.ring.told == [REPOSITORY]
        assert await origin.tasks() == []


async def test_a_blob_that_nobody_has_any_more_is_told_loudly(tmp_path: Path) -> None:
    async with started(tmp_path, ring=Ring(silent={B})) as origin:
        async with origin.writeback.taking(DIGEST, [REPOSITORY]):
            pass
        await origin.until(lambda: len(origin.ring.told) > 1)
        assert [task.state for task in await origin.tasks()] != [State.DEAD]
        origin.ring.silent.clear()
        async with asyncio.timeout(20):
            while (await origin.tasks())[0].state is not State.DEAD:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert "push it again" in (await origin.tasks())[0].error


@pytest.mark.parametrize("holders", [{A}, set()])
async def test_a_push_while_its_task_of_before_finds_no_copy_is_written(
    tmp_path: Path, holders: set[str]
) -> None:
    """An origin died in a push, and the client pushes again as it is back."""
    ring = Ring()
    async with started(tmp_path, ring=ring) as origin:

        async def pushed_meanwhile(digests: Iterable[Digest], **_: object) -> Presence:
            await origin.push()
            return Presence({}, dict.fromkeys(digests, frozenset(holders)), {})

        ring.stat_many = pushed_meanwhile  # type: ignore[method-assign]
        async with origin.writeback.taking(DIGEST, [REPOSITORY]):
            pass
        await origin.until(lambda: origin.backend.puts != [])
        await origin.until_settled()
        assert origin.local.backing.entries(DIGEST)
        assert await origin.tasks() == []


async def test_a_repository_that_matches_no_backend_is_refused_by_name_and_patterns(
    tmp_path: Path,
) -> None:
    async with started(tmp_path) as origin:
        for repository in ("other/app", "docker.io/library/alpine"):
            with pytest.raises(Denied):
                origin.writeback.check([repository])
        with pytest.raises(Denied, match=DENIED):
            await origin.push(repositories=[REPOSITORY, "other/app"])
        assert await origin.tasks() == []
        assert origin.local.find(DIGEST) is None
        origin.backend.read_only = True
        with pytest.raises(Denied, match="cannot be pushed to"):
            origin.writeback.check([REPOSITORY])


async def test_without_backends_nothing_is_refused_and_nothing_noted(tmp_path: Path) -> None:
    async with started(tmp_path, patterns=()) as origin:
        await origin.push(repositories=["other/app"])
        assert await origin.tasks() == []


async def test_settling_needs_a_copy(tmp_path: Path) -> None:
    async with started(tmp_path) as origin:
        with pytest.raises(BlobUnknown):
            await origin.writeback.settle(DIGEST, REPOSITORY, Deadline.after(5))


async def test_many_pushes_at_once_write_each_blob_once(tmp_path: Path) -> None:
    async with started(tmp_path) as origin:
        contents = [os.urandom(2000) for _ in range(10)]
        await asyncio.gather(*(origin.push(data) for data in contents * 3))
        for data in contents:
            await origin.until(lambda data=data: not origin.local.is_pinned(Digest.of(data)))  # type: ignore[misc]
        assert sorted(map(str, origin.backend.puts)) == sorted(
            str(Digest.of(data)) for data in contents
        )


async def test_a_push_that_cannot_be_noted_takes_nothing_from_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Ring(owners_in_order=[B, A, C])  # staggered: it waits, and was never tried
    async with started(tmp_path, ring=ring) as origin:
        await origin.push()
        [before] = await origin.tasks()

        async def locked(*_: object, **__: object) -> bool:
            raise sqlite3.OperationalError("database is locked")

        monkeypatch.setattr(origin.writeback._queue, "add", locked)
        with pytest.raises(Unavailable, match="nothing of it was kept"):
            await origin.push()
        assert await origin.tasks() == [before]
        assert origin.local.is_pinned(DIGEST)
        other = Digest.of(b"other")
        with pytest.raises(Unavailable):
            await origin.push(b"other")
        assert not origin.local.is_pinned(other)


async def test_a_copy_that_rotted_while_its_backend_was_down_is_not_written(
    tmp_path: Path,
) -> None:
    backend = CountingBackend(failure="no route")
    async with started(tmp_path, backend) as origin:
        await origin.push()
        await origin.until(lambda: backend.stats > 0)
    path = origin.store.path(DIGEST)
    rotten = bytearray(path.read_bytes())
    rotten[100] ^= 1
    path.write_bytes(rotten)
    ring = Ring(holders={B})
    async with started(tmp_path, CountingBackend(), ring) as again:
        await again.until_settled()
        assert again.backend.puts == []
        assert not again.local.backing.entries(DIGEST)
        assert ring.told == [REPOSITORY], "it is left to those that have a good copy"


async def test_only_repositories_without_a_backend_rely_on_the_origins(tmp_path: Path) -> None:
    async with started(tmp_path, patterns=()) as origin:
        assert origin.writeback.are_unbacked(["own/app"])
        assert not origin.writeback.are_unbacked([REPOSITORY])
        assert not origin.writeback.are_unbacked(["docker.io/library/alpine"])
        assert not origin.writeback.are_unbacked([])


async def test_a_debt_whose_backend_was_removed_does_not_keep_others_from_a_copy(
    tmp_path: Path,
) -> None:
    backend = CountingBackend(failure="no route")
    async with started(tmp_path, backend) as origin:
        await origin.push()
        assert origin.writeback.pending(DIGEST) == [REPOSITORY]
        origin.writeback._backends = BlobBackends(NoBackends(), ["elsewhere/.*"])
        assert origin.writeback.pending(DIGEST) == []
        assert origin.local.is_pinned(DIGEST)


async def test_what_the_backend_has_lost_is_not_evicted_but_written_anew(tmp_path: Path) -> None:
    async with started(tmp_path) as origin:
        copies = BackedCopies(origin.store, origin.local, lambda _: False, lambda _: None)
        await origin.push()
        await origin.until_settled()
        origin.backend.blobs.clear()
        assert not await copies.evict(DIGEST)
        await origin.until(lambda: origin.backend.blobs == {DIGEST: DATA})
        await origin.until_settled()
        assert await copies.evict(DIGEST)
        assert origin.local.find(DIGEST) is None


async def test_nothing_is_evicted_while_its_backend_does_not_answer(tmp_path: Path) -> None:
    async with started(tmp_path) as origin:
        copies = BackedCopies(origin.store, origin.local, lambda _: False, lambda _: None)
        await origin.push()
        await origin.until_settled()
        origin.backend.failure = "no route"
        asked = origin.backend.stats
        for _ in range(10):
            assert not await copies.evict(DIGEST)
        assert origin.backend.stats == asked + 1, "a silent backend costs its time once"
        assert origin.local.find(DIGEST) is not None
