# SPDX-License-Identifier: Apache-2.0
"""Writes that survive a power cut: temp file, fsync, rename, fsync of the folder. It blocks."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def fsync_file(path: Path) -> None:
    """Return when the file's content is on stable storage. Its name is not: see `fsync_dir`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_dir(path: Path) -> None:
    """Return when names made, renamed and removed in the folder are on stable storage."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_dirs_durably(path: Path) -> None:
    """Make a folder and those above it; return when each new name is on stable storage."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_dir(folder.parent)


def replace_durably(temp: Path, final: Path) -> None:
    """Give `temp` the name `final`, replacing what was there.

    On return content and name are on stable storage. After a crash before that, `final` is the old
    file or the new one, whole. Both must be on one file system.
    """
    fsync_file(temp)
    temp.replace(final)
    fsync_dir(final.parent)


def write_plainly(path: Path, data: bytes, *, temp: Path | None = None) -> None:
    """Write a file that is never seen half-written. Without a promise for a power cut.

    `temp`: the new name under which it is written first, on the same file system; by default one
    beside it, which a crash leaves behind.
    """
    _write(path, data, temp, durable=False)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that is never seen half-written.

    On return content and name are on stable storage. After a crash before that, the file is the old
    one or the new one, whole. A failure (disk full) leaves the old one and nothing else.
    """
    _write(path, data, None, durable=True)
    fsync_dir(path.parent)


def write_synced(path: Path, data: bytes, *, temp: Path | None = None) -> None:
    """As `write_durably` but for the name: the caller syncs the folder, once for several files.

    `temp` as in `write_plainly`.
    """
    _write(path, data, temp, durable=True)


def _write(path: Path, data: bytes, temp: Path | None, *, durable: bool) -> None:
    temp = temp or path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temp.open("xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
