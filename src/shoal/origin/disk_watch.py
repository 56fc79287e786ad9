# SPDX-License-Identifier: Apache-2.0
"""Notices that the folders of the blobs vanished, or were emptied, while the origin runs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from shoal.origin import upkeep_metrics as metrics
from shoal.store.durable import write_plainly
from shoal.store.threads import in_thread

MARK = "in-use"
"""File in each folder; when it is gone or another process's, so may be all that lay beside it."""

log = structlog.get_logger()


class DiskWatch:
    """Looks for its mark in each of the folders."""

    def __init__(
        self,
        folders: Sequence[Path],
        make_folders: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        """`make_folders` blocks, and makes those that are missing; `lost` is told after that."""
        self._folders = folders
        self._make_folders = make_folders
        self._lost = lost
        self._mark = uuid.uuid4().hex.encode()

    async def run(self, interval: float) -> None:
        """Look every `interval` seconds, for good."""
        await self._guarded(self._put_marks)
        while True:
            await asyncio.sleep(interval)
            if await self._guarded(self.look):
                metrics.DISKS_LOST.inc()
                self._lost()

    async def _guarded(self, step: Callable[[], bool | None]) -> bool:
        try:
            return bool(await in_thread(step))
        except OSError as error:
            # Requests fail with the same error, and readiness says so.
            log.error("cannot look at the folders of the blobs", error=str(error))  # noqa: TRY400
            return False

    def look(self) -> bool:
        """Whether a folder was lost; it has been made anew. Blocks."""
        gone = [folder for folder in self._folders if not self._is_marked(folder)]
        if not gone:
            return False
        log.error("the folder of the blobs was lost or emptied", folders=[*map(str, gone)])
        self._make_folders()
        self._put_marks()
        return True

    def _is_marked(self, folder: Path) -> bool:
        try:
            return (folder / MARK).read_bytes() == self._mark
        except FileNotFoundError:
            return False

    def _put_marks(self) -> None:
        for folder in self._folders:
            write_plainly(folder / MARK, self._mark)
