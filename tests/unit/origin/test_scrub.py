# SPDX-License-Identifier: Apache-2.0
"""When a scrub begins, and that it comes to its end."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.origin.config import ScrubConfig
from shoal.origin.local import LocalBlobs
from shoal.origin.scrub import Scrubber
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import metainfo_of

INTERVAL = 1000.0
CONTENTS = [b"one", b"two", b"three"]


class Clock:
    now = 2e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def local(tmp_path: Path) -> LocalBlobs:
    store = BlobStore(tmp_path)
    local = LocalBlobs(store)
    for data in CONTENTS:
        temp = store.temp()
        temp.write_bytes(data)
        local.keep(temp, metainfo_of(data))
    return local


@pytest.fixture
async def scrubber(tmp_path: Path, clock: Clock, local: LocalBlobs) -> AsyncIterator[Scrubber]:
    config = ScrubConfig(interval=INTERVAL)
    scrubber = Scrubber(local, tmp_path / "scrub.json", config, clock=clock)
    yield scrubber
    await scrubber.close()


async def test_all_is_read_again_when_the_interval_has_passed(
    scrubber: Scrubber, clock: Clock
) -> None:
    first = await scrubber.scrub()
    assert first.blobs == len(CONTENTS)
    clock.now += INTERVAL - 1
    assert await scrubber.scrub() is first
    clock.now += 1
    assert (await scrubber.scrub()).started == clock.now


async def test_a_clock_that_was_set_back_does_not_stop_it(scrubber: Scrubber, clock: Clock) -> None:
    await scrubber.scrub()
    clock.now -= 10 * 365 * 86_400
    again = await scrubber.scrub()
    assert (again.started, again.blobs) == (clock.now, len(CONTENTS))


async def test_a_copy_that_can_be_neither_right_nor_set_aside_does_not_end_it(
    scrubber: Scrubber, local: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(local.copies())
    whole = local.find(first.digest)
    assert whole is not None
    whole.blob.path.write_bytes(bytes(first.size))

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", read_only)
    done = await scrubber.scrub()
    assert (done.blobs, done.damaged) == (len(CONTENTS) - 1, 1)
    assert done.finished is not None
