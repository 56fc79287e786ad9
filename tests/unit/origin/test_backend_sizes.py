# SPDX-License-Identifier: Apache-2.0
"""However many ask for the size of a blob that only a backend has, the backend is asked once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shoal.backend.base import Name
from shoal.model.errors import BlobUnknown, SourceFailed
from shoal.origin.refresh import SIZE_FOR
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound, Overloaded, Unreachable
from tests.unit.origin.counting_backend import REPOSITORY, CountingBackend
from tests.unit.origin.test_refresh import DATA, DIGEST, A, B, C, Origin, Ring, an_origin


class SlowBackend(CountingBackend):
    """Answers when it is told to."""

    def __init__(self, blobs: dict[object, bytes] | None = None) -> None:
        super().__init__(dict(blobs or {}))  # type: ignore[arg-type]
        self.go = asyncio.Event()

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        await self.go.wait()
        return await super().stat(name, deadline=deadline)


async def stat(origin: Origin, *, led: bool = False, seconds: float = 20) -> int:
    return await origin.refresh.stat(DIGEST, REPOSITORY, Deadline.after(seconds), led=led)


@pytest.mark.parametrize("blobs", [{DIGEST: DATA}, {}], ids=["there", "absent"])
async def test_two_hundred_heads_at_once_are_one_question(
    tmp_path: Path, blobs: dict[object, bytes]
) -> None:
    backend = SlowBackend(blobs)
    async with an_origin(tmp_path, backend) as origin:
        # Some of them were led here by other origins.
        asking = [asyncio.create_task(stat(origin, led=n % 2 == 0)) for n in range(200)]
        await asyncio.sleep(0)
        backend.go.set()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert backend.stats == 1
        if blobs:
            assert set(answers) == {len(DATA)}
        else:
            assert {type(answer) for answer in answers} == {BlobUnknown}
        await asyncio.gather(*(stat(origin) for _ in range(5)), return_exceptions=True)
        assert backend.stats == 1


async def test_a_size_holds_for_a_short_time(tmp_path: Path) -> None:
    async with an_origin(tmp_path) as origin:
        assert await stat(origin) == len(DATA)
        origin.clock.now = SIZE_FOR - 0.1
        assert await stat(origin) == len(DATA)
        assert origin.backend.stats == 1
        origin.backend.blobs.clear()
        origin.clock.now = SIZE_FOR
        with pytest.raises(BlobUnknown):
            await stat(origin)
        assert origin.backend.stats == 2


async def test_who_leaves_early_ends_no_question_of_others(tmp_path: Path) -> None:
    backend = SlowBackend({DIGEST: DATA})
    async with an_origin(tmp_path, backend) as origin:
        with pytest.raises(SourceFailed, match=str(DIGEST)):
            await stat(origin, seconds=0.02)
        patient = asyncio.create_task(stat(origin))
        await asyncio.sleep(0)
        backend.go.set()
        assert await patient == len(DATA)
        assert backend.stats == 1


async def test_the_first_owner_that_can_be_reached_asks_for_all(tmp_path: Path) -> None:
    ring = Ring([B, C, A], {B: Unreachable("GET", B, "refused"), C: 7})
    async with an_origin(tmp_path, ring=ring) as origin:
        assert await asyncio.gather(*(stat(origin) for _ in range(50))) == [7] * 50
        assert ring.led == [B, C]
        assert origin.backend.stats == 0
        assert await stat(origin) == 7
        assert ring.led == [B, C]
        origin.clock.now = SIZE_FOR
        ring.unhealthy |= {B, C}
        assert await stat(origin) == len(DATA)
        assert origin.backend.stats == 1


async def test_what_the_first_owner_answers_is_everybodys(tmp_path: Path) -> None:
    ring = Ring([B, A], {B: Overloaded("GET", B, "the backend is down", status=503)})
    async with an_origin(tmp_path, ring=ring) as origin:
        with pytest.raises(Overloaded):
            await stat(origin)
        ring.answers[B] = NotFound("GET", B, "not there")
        for _ in range(3):
            with pytest.raises(BlobUnknown):
                await stat(origin)
        assert ring.led == [B, B]
        assert origin.backend.stats == 0
