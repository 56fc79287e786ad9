# SPDX-License-Identifier: Apache-2.0
"""A disk that is emptied, vanishes or answers EIO is lost, whatever the other disks do."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.origin.disk_watch import MARK, DiskWatch
from shoal.store.blobs import BlobStore
from shoal.store.volumes import Volumes


class Disks:
    """Two volumes; what is read of and written to one of them may fail."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = BlobStore(Volumes([folder / "a", folder / "b"]))
        self.first, self.second = self.store.folders()
        self.failing: dict[Path, int] = {}
        self.lost = 0
        self.watch = DiskWatch(
            self.store.folders(),
            self.store.make_again,
            self._note,
            failures=self.store.volumes.failures,
        )
        for name in ("read_bytes", "write_bytes", "mkdir", "is_dir"):
            monkeypatch.setattr(Path, name, self._failing(getattr(Path, name)))

    def _note(self) -> None:
        self.lost += 1

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Path, *args: Any, **more: Any) -> Any:
            for folder, number in self.failing.items():
                if folder == path or folder in path.parents:
                    raise OSError(number, "failing", str(path))
            return call(path, *args, **more)

        return wrapped


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    disks = Disks(tmp_path, monkeypatch)
    disks.watch.put_marks()
    return disks


def test_nothing_is_lost_as_long_as_the_marks_are_there(disks: Disks) -> None:
    assert not disks.watch.look()


@pytest.mark.parametrize("emptied", [True, False])
def test_a_folder_that_vanished_is_made_anew_and_told_once(disks: Disks, emptied: bool) -> None:
    shutil.rmtree(disks.second)
    if emptied:
        disks.second.mkdir()
    assert disks.watch.look()
    assert (disks.second / "sha256" / "ff").is_dir()
    assert not disks.watch.look()
    shutil.rmtree(disks.second)
    assert disks.watch.look()


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN])
def test_a_disk_that_cannot_be_read_is_lost_and_told_once(disks: Disks, number: int) -> None:
    disks.failing[disks.second] = number
    assert disks.watch.look()
    assert not disks.watch.look()
    # It is back, with all it had, and then it is lost again.
    disks.failing.clear()
    assert not disks.watch.look()
    disks.failing[disks.second] = number
    assert disks.watch.look()


def test_a_disk_that_fails_hides_no_loss_of_another(disks: Disks) -> None:
    disks.failing[disks.first] = errno.EIO
    assert disks.watch.look()
    shutil.rmtree(disks.second)
    assert disks.watch.look()
    assert (disks.second / MARK).exists()


def test_what_says_nothing_of_the_disk_is_no_loss(disks: Disks) -> None:
    disks.failing[disks.second] = errno.EMFILE
    assert not disks.watch.look()
    shutil.rmtree(disks.first)
    assert disks.watch.look()


def test_a_disk_on_which_the_store_came_upon_an_error_is_lost(disks: Disks) -> None:
    disks.store.volumes.failed(disks.second / "sha256", OSError(errno.EIO, "failing"))
    assert disks.watch.look()
    assert not disks.watch.look()


async def test_the_loss_is_told_while_it_runs(disks: Disks) -> None:
    running = asyncio.create_task(disks.watch.run(0.01))
    try:
        await asyncio.sleep(0.05)
        disks.failing[disks.first] = errno.EIO
        async with asyncio.timeout(10):
            while not disks.lost:  # noqa: ASYNC110 -- a thread makes it true
                await asyncio.sleep(0.005)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
