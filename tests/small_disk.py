# SPDX-License-Identifier: Apache-2.0
"""A real file system of a few MiB for one process, in a mount namespace of its own."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest


@cache
def _why_not() -> str | None:
    probe = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=1m shoal /mnt"]
    try:
        tried = subprocess.run(probe, capture_output=True, text=True, timeout=10, check=False)
    except OSError as error:
        return f"unshare cannot be run: {error}"
    return None if tried.returncode == 0 else tried.stderr.strip()


def needs_small_disk() -> None:
    """Skip the test where no file system can be mounted."""
    if (why := _why_not()) is not None:
        pytest.skip(f"no file system can be mounted in a namespace of its own: {why}")


def on_small_disk(folder: Path, size: int) -> list[str]:
    """What to put before a command, so that `folder` is a file system of `size` bytes for it.

    The file system is gone with the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = 'mount -t tmpfs -o size="$1" shoal "$0" && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, str(folder), str(size)]


def as_seen_by(pid: int, path: Path) -> Path:
    """A path on the small disk of a process."""
    return Path(f"/proc/{pid}/root{path}")


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all the room there is but for `leave` bytes; returns the file that takes it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(64 * 1024)):
                pass
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return filler
