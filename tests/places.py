# SPDX-License-Identifier: Apache-2.0
"""Where tests put what real programs are particular about."""

from __future__ import annotations

import stat
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

_LONGEST: Final = 16
"""Characters. Sockets below it need to stay under 108, podman's run directory under 50."""


@cache
def open_folder() -> Path:
    """For temporary folders with a short path that every user can reach.

    The configured one is often neither: some have one of their own for each user, or each job.
    """
    folders = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    for folder in folders:
        if len(str(folder)) <= _LONGEST and _is_open(folder):
            return folder
    raise AssertionError(f"no temporary folder that all users can reach: {folders}")


def _is_open(folder: Path) -> bool:
    way = [folder, *folder.parents]
    return all(each.is_dir() and each.stat().st_mode & stat.S_IXOTH for each in way) and bool(
        folder.stat().st_mode & stat.S_IWOTH
    )
