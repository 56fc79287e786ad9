# SPDX-License-Identifier: Apache-2.0
"""Blobs in the proxy's keeping: durable before they are acknowledged, gone when delivered."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import Unavailable
from shoal.proxy.config import ProxyConfig
from shoal.proxy.custody import QUEUE, DurableCustody
from shoal.queue.config import queue_file
from shoal.queue.database import QueueDatabase
from shoal.store.blobs import BlobStore
from shoal.web.bodies import FileSegment
from shoal.web.deadline import Deadline
from tests.unit.registry_fakes import QUORUM, Copies, MemoryOrigins

NAME = "team/app"
CONTENT = bytes(range(256)) * 30
DIGEST = Digest.of(CONTENT)


def config(folder: Path, **delivery: object) -> ProxyConfig:
    return ProxyConfig.model_validate(
        {
            "data_dir": folder,
            "origins": {"hosts": ["a:1", "b:1", "c:1"], "write_quorum": QUORUM},
            "build_index": {"hosts": ["i:1"]},
            "push": [{"pattern": ".*", "mode": "write_back"}],
            "delivery": {"retry": {"initial": 0.01, "cap": 0.05}, **delivery},
        }
    )


@asynccontextmanager
async def started(
    folder: Path, origins: MemoryOrigins, **delivery: object
) -> AsyncIterator[DurableCustody]:
    custody = await DurableCustody.start(config(folder, **delivery), origins)
    try:
        yield custody
    finally:
        await custody.stop(5)


def soon() -> Deadline:
    return Deadline.after(20)


def upload(folder: Path, content: bytes = CONTENT) -> Path:
    """A file that was received and verified."""
    path = folder / "uploads" / os.urandom(8).hex()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files(folder: Path) -> list[str]:
    return [path.name for path in (folder / "custody").rglob("*") if path.is_file()]


async def test_it_is_answered_from_here_until_it_is_delivered(tmp_path: Path) -> None:
    origins = MemoryOrigins(failure="down")
    async with started(tmp_path, origins) as custody:
        await custody.take(upload(tmp_path), DIGEST, NAME)
        assert await custody.size(DIGEST) == len(CONTENT)
        blob = await custody.open(DIGEST)
        assert blob is not None
        (segment,) = [part async for part in blob.segments(5, 9)]
        assert isinstance(segment, FileSegment)
        # Whoever reads it can finish, wherever it is now.
        origins.failure = None
        assert await custody.delivered([DIGEST], soon()) == {}
        assert os.pread(segment.descriptor, 4, segment.start) == CONTENT[5:9]
        await blob.close()
        assert origins.blobs == {DIGEST: CONTENT}
        assert (await custody.size(DIGEST), await custody.open(DIGEST)) == (None, None)
    assert files(tmp_path) == []


async def test_what_is_late_is_named_with_why(tmp_path: Path) -> None:
    origins = MemoryOrigins(failure="origin-1:5002 refused")
    async with started(tmp_path, origins) as custody:
        await custody.take(upload(tmp_path), DIGEST, NAME)
        async with asyncio.timeout(20):
            while True:
                late = await custody.delivered([DIGEST, Digest.of(b"")], Deadline.after(0))
                if "origin-1:5002 refused" in late[DIGEST]:
                    break
                await asyncio.sleep(0.01)
        assert set(late) == {DIGEST}


async def test_a_second_push_of_what_waits_keeps_one_copy(tmp_path: Path) -> None:
    origins = MemoryOrigins(failure="down")
    async with started(tmp_path, origins) as custody:
        await asyncio.gather(
            *(custody.take(upload(tmp_path), DIGEST, f"team/{n}") for n in range(10))
        )
        assert files(tmp_path) == [DIGEST.hex]


async def test_what_was_given_up_is_delivered_when_it_is_pushed_again(tmp_path: Path) -> None:
    origins = MemoryOrigins(failure="down")
    given_up = {"dead_after": 0, "retry": {"attempts": 1}}
    async with started(tmp_path, origins, **given_up) as custody:
        await custody.take(upload(tmp_path), DIGEST, NAME)
        late = await custody.delivered([DIGEST], soon())
        assert late[DIGEST].startswith("dead")
        assert await custody.size(DIGEST) == len(CONTENT)
        origins.failure = None
        await custody.take(upload(tmp_path), DIGEST, NAME)
        async with asyncio.timeout(20):
            while DIGEST not in origins.blobs:  # noqa: ASYNC110 -- nobody hurries it
                await asyncio.sleep(0.01)
    assert files(tmp_path) == []


class Whole(MemoryOrigins):
    """Origins that are given files, and never asked for one that is gone."""

    async def stat_many(
        self,
        digests: Iterable[Digest],
        *,
        deadline: Deadline,
        keep: bool = False,
        namespace: str = "",
    ) -> Copies:
        raise AssertionError(f"the file of {list(digests)} was removed under its task")


async def test_pushes_while_the_same_blob_is_being_delivered_lose_nothing(tmp_path: Path) -> None:
    origins = Whole()

    async def push_often() -> None:
        for _ in range(15):
            await custody.take(upload(tmp_path), DIGEST, NAME)
            # In the order in which it leaves: here, then there.
            assert await custody.size(DIGEST) is not None or DIGEST in origins.blobs

    async with started(tmp_path, origins) as custody:
        await asyncio.gather(*(push_often() for _ in range(4)))
        assert await custody.delivered([DIGEST], soon()) == {}
    assert files(tmp_path) == []


@pytest.mark.parametrize("there", [True, False])
async def test_a_file_that_is_gone_is_no_reason_to_try_for_ever(
    tmp_path: Path, there: bool
) -> None:
    origins = MemoryOrigins(failure="down")
    async with started(tmp_path, origins) as custody:
        await custody.take(upload(tmp_path), DIGEST, NAME)
        BlobStore(tmp_path / "custody").delete(DIGEST)
        if there:
            origins.hold(CONTENT)
        origins.failure = None
        late = await custody.delivered([DIGEST], soon())
        assert late == {} if there else "push it again" in late[DIGEST]


async def test_a_full_disk_is_said_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins = MemoryOrigins()

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async with started(tmp_path, origins) as custody:
        for owner, name in ((BlobStore, "adopt"), (QueueDatabase, "transact")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, no_room)
                with pytest.raises(Unavailable, match="No space left on device; nothing of it"):
                    await custody.take(upload(tmp_path), DIGEST, NAME)
            assert files(tmp_path) == []
            assert await custody.size(DIGEST) is None
        await custody.take(upload(tmp_path), DIGEST, NAME)
        assert await custody.delivered([DIGEST], soon()) == {}


@dataclass
class Moment:
    """The disk as it was before or after one step, and what had happened by then."""

    step: str
    folder: Path
    acknowledged: bool
    delivered: bool


async def test_a_kill_at_every_step_loses_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, origins = tmp_path / "live", MemoryOrigins()
    moments: list[Moment] = []
    acknowledged = False

    def photograph(step: str) -> None:
        copy = tmp_path / f"moment-{len(moments)}"
        shutil.copytree(folder, copy)
        moments.append(Moment(step, copy, acknowledged, DIGEST in origins.blobs))

    def photographed(owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def step(*arguments: Any, **named: Any) -> Any:
            photograph(f"before {name}")
            result = original(*arguments, **named)
            photograph(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, step)

    for owner, name in (
        (BlobStore, "adopt"),
        (BlobStore, "delete"),
        (QueueDatabase, "add"),
        (QueueDatabase, "claim"),
        (QueueDatabase, "done"),
        (QueueDatabase, "transact"),
    ):
        photographed(owner, name)
    origins.gate = asyncio.Event()
    async with started(folder, origins) as custody:
        await custody.take(upload(folder), DIGEST, NAME)
        acknowledged = True
        photograph("acknowledged")
        origins.gate.set()
        assert await custody.delivered([DIGEST], soon()) == {}
    monkeypatch.undo()

    assert {moment.step.split()[-1] for moment in moments} >= {"adopt", "add", "done", "delete"}
    assert any(not moment.acknowledged for moment in moments)
    for moment in moments:
        after = MemoryOrigins()
        if moment.delivered:
            after.hold(CONTENT)
        async with started(moment.folder, after) as custody:
            assert await custody.delivered([DIGEST], soon()) == {}, moment
            if moment.acknowledged:
                assert after.blobs == {DIGEST: CONTENT}, moment
        assert files(moment.folder) == [], moment
        assert queue_file(moment.folder, QUEUE).is_file()


async def test_each_repository_gets_a_delivery_of_its_own(tmp_path: Path) -> None:
    origins = MemoryOrigins(failure="down")
    async with started(tmp_path, origins) as custody:
        await custody.take(upload(tmp_path), DIGEST, NAME)
        await custody.take(upload(tmp_path), DIGEST, "other/app")
        await custody.take(upload(tmp_path), DIGEST, "other/app")
        assert list(await custody.delivered([DIGEST], Deadline.after(0.05))) == [DIGEST]
    # Also after a restart.
    async with started(tmp_path, origins) as custody:
        origins.failure = None
        assert await custody.delivered([DIGEST], soon()) == {}
        delivered = [name for digest, name in origins.namespaces if digest == DIGEST]
        assert {NAME, "other/app"} == set(delivered)
        async with asyncio.timeout(10):
            while files(tmp_path):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
