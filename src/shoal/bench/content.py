# SPDX-License-Identifier: Apache-2.0
"""Blobs to measure with: random bytes, new ones for each run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_STEP = 8 << 20


def write_random(path: Path, size: int) -> None:
    """Write a file of random bytes, and wait until the disk has it."""
    with path.open("wb") as file:
        for start in range(0, size, _STEP):
            file.write(os.urandom(min(_STEP, size - start)))
        file.flush()
        os.fsync(file.fileno())


def renew(path: Path) -> str:
    """Make a random file another blob; return its digest."""
    with path.open("r+b") as file:
        file.write(os.urandom(min(32, path.stat().st_size)))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
