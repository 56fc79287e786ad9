# SPDX-License-Identifier: Apache-2.0
"""Say before the start that a disk is too small, not in the middle."""

from __future__ import annotations

import shutil
from pathlib import Path


class NoRoom(Exception):
    """The disk is too small for what is about to be done."""


def check_room(folder: Path, needed: int) -> None:
    """Raise `NoRoom` unless `needed` bytes are free where the folder is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoom(
            f"{needed / 1e9:.1f} GB are needed in {folder.parent}, {free / 1e9:.1f} GB are free: "
            "take a smaller --size, or another folder (environment variable TMPDIR)"
        )
