# SPDX-License-Identifier: Apache-2.0
"""Notices that a folder of the blobs vanished, was emptied, or can no longer be read at run time.

Each folder by itself: a disk that fails hides nothing of what happens to the others.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from shoal.origin import upkeep_metrics as metrics
from shoal.store.durable import write_plainly
from shoal.store.full import is_unreadable
from shoal.store.threads import in_thread

MARK = "in-use"
"""File in each folder; when it is gone or another process's, so may be all that lay beside it."""

log = structlog.get_logger()


class DiskWatch:
    """Looks for its mark in each of the folders."""

    def __init__(
        self,
        folders: Sequence[Path],
        make_again: Callable[[Path], None],
        lost: Callable[[], None],
        *,
        failures: Callable[[], Sequence[str]],
    ) -> None:
        """`make_again` blocks, and makes a folder that is missing; `lost` is told after that.

        `failures` are the disks on which somebody else came upon an error: what the kernel still
        has in memory, such as the marks, can be read of a disk that is gone.
        """
        self._failures = failures
        self._failed = 0
        self._folders = folders
        self._make_again = make_again
        self._lost = lost
        self._mark = uuid.uuid4().hex.encode()
        self._broken: set[Path] = set()
        """Folders whose loss was told, and that could not be made again yet."""

    async def run(self, interval: float) -> None:
        """Look every `interval` seconds, for good."""
        await in_thread(self.put_marks)
        while True:
            await asyncio.sleep(interval)
            if await in_thread(self.look):
                metrics.DISKS_LOST.inc()
                self._lost()

    def put_marks(self) -> None:
        """Mark the folders as they are now. Blocks."""
        for folder in self._folders:
            try:
                self._put_mark(folder)
            except OSError as error:
                # Without a mark it counts as lost at the next look, if it still cannot be used.
                _say(folder, error)

    def look(self) -> bool:
        """Whether a folder was lost since the last look; it is made anew if it can be. Blocks."""
        failures, before = self._failures(), self._failed
        self._failed = len(failures)
        lost = [self._is_lost(folder) for folder in self._folders]
        return any(lost) or len(failures) > before

    def _is_lost(self, folder: Path) -> bool:
        try:
            if (folder / MARK).read_bytes() == self._mark:
                self._broken.discard(folder)
                return False
        except FileNotFoundError:
            pass
        except OSError as error:
            _say(folder, error)
            if not is_unreadable(error):
                return False  # requests fail with the same error, and readiness says so
        known = folder in self._broken
        if not known:
            log.error("the folder of the blobs was lost or emptied", folder=str(folder))
        try:
            self._make_again(folder)
            self._put_mark(folder)
            self._broken.discard(folder)
        except OSError as error:
            _say(folder, error)
            self._broken.add(folder)
        return not known

    def _put_mark(self, folder: Path) -> None:
        write_plainly(folder / MARK, self._mark)


def _say(folder: Path, error: OSError) -> None:
    log.error("cannot use the folder of the blobs", folder=str(folder), error=str(error))
