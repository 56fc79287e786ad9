# SPDX-License-Identifier: Apache-2.0
"""A real file system of a few MiB for one process, in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from tests.missing_clients import lacking, unavailable

_NAMESPACES = (
    ["unshare", "--mount"],
    # Without root, where the kernel gives namespaces to everyone.
    ["unshare", "--user", "--map-root-user", "--mount"],
)


@cache
def _namespace() -> tuple[list[str], str]:
    """The command that makes a namespace in which a file system can be mounted; or why none."""
    why = ""
    for command in _NAMESPACES:
        probe = [*command, "sh", "-c", "mount -t tmpfs -o size=1m shoal /mnt"]
        try:
            tried = subprocess.run(probe, capture_output=True, text=True, timeout=10, check=False)
        except OSError as error:
            return [], f"unshare cannot be run: {error}"
        if tried.returncode == 0:
            return command, ""
        why = tried.stderr.strip()
    return [], why


def needs_small_disk() -> None:
    """End the test where no file system can be mounted.

    No limit of another kind stands in for it: a quota on the size of files, say, fails with another
    error, and never heals.
    """
    command, why = _namespace()
    if command:
        return
    what = f"a file system of a few MiB (tmpfs in a namespace of its own): {why}"
    if os.geteuid() == 0:
        # Root that may not mount is in a container, where daemons of other tests do not run either.
        unavailable(what)
    lacking(what)


def on_small_disk(folder: Path, size: int) -> list[str]:
    """What to put before a command, so that `folder` is a file system of `size` bytes for it.

    The file system is gone with the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = 'mount -t tmpfs -o size="$1" shoal "$0" && shift && exec "$@"'
    command, _ = _namespace()
    return [*command, "sh", "-c", mount, str(folder), str(size)]


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
