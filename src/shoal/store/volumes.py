# SPDX-License-Identifier: Apache-2.0
"""The folders, each on a disk of its own, over which a store spreads its files.

Where a new file goes is decided by weighted rendezvous hashing, so that a volume more or less
changes the place of few. Files stay where they are: lookups ask all volumes. All of it blocks.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from shoal.ring.rendezvous import owners
from shoal.store.durable import make_dirs_durably, write_durably
from shoal.store.eviction import Space

MARKER: Final = "shoal-volume"
"""File in each volume's folder; where it is missing, the disk is not mounted."""

KNOWN: Final = "volumes.json"
"""File beside the first volume: the ids of all volumes that were in use."""

_BROKEN = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.EUCLEAN})
"""A disk that answers these will answer them again."""

log = structlog.get_logger()


class VolumesUnusable(Exception):
    """A volume of the config is not there, or cannot be written to."""


class Volumes:
    """One folder or several. May be used from any thread.

    A volume that fails while the process runs gets nothing new until the next start. What is on it
    is read as long as it can be.
    """

    def __init__(self, paths: Sequence[Path], weights: Mapping[Path, float] | None = None) -> None:
        """Weights are relative to 1; with 0 a volume gets nothing new."""
        self.paths = tuple(paths)
        self._weights = {str(path): (weights or {}).get(path, 1.0) for path in self.paths}
        self._failed: dict[int, str] = {}

    def under(self, name: str) -> Volumes:
        """The folder `name` of each volume; a volume that fails has failed for both."""
        weights = {path / name: self._weights[str(path)] for path in self.paths}
        below = Volumes([path / name for path in self.paths], weights)
        below._failed = self._failed
        return below

    def choose(self, key: str) -> Path:
        """Where a new file of this key belongs."""
        if len(self.paths) == 1:
            return self.paths[0]
        usable = {
            str(path)
            for number, path in enumerate(self.paths)
            if number not in self._failed and self._weights[str(path)] > 0
        }
        if not usable:
            failed = "; ".join(self.failures()) or "all weights are 0"
            raise OSError(errno.EIO, f"no volume takes anything new: {failed}")
        return Path(owners(key, usable, 1, weights=self._weights)[0])

    def of(self, path: Path) -> Path:
        """The volume that a path lies on."""
        return self.paths[self.index(path)]

    def index(self, path: Path) -> int:
        """The number of the volume that a path lies on."""
        if len(self.paths) == 1:
            return 0
        above = set(path.parents)
        inside = [number for number, folder in enumerate(self.paths) if folder in above]
        if not inside:
            raise ValueError(f"{path} lies on none of the volumes")
        return max(inside, key=lambda number: len(self.paths[number].parts))

    def spaces(self) -> list[Space]:
        """Size and free space of each; a volume that has failed has none."""
        return [self._space(number) for number in range(len(self.paths))]

    def _space(self, number: int) -> Space:
        try:
            status = os.statvfs(self.paths[number])
        except OSError as error:
            self._fail(number, error)
            return Space(0, 0)
        size = status.f_frsize
        used = status.f_blocks - status.f_bfree
        # What is reserved for root counts as absent: df computes its percentage in the same way.
        return Space((used + status.f_bavail) * size, status.f_bavail * size)

    # -- failures

    @contextmanager
    def watching(self, path: Path) -> Iterator[None]:
        """Work on a file; an error that says that the disk is broken takes its volume out."""
        try:
            yield
        except OSError as error:
            self.failed(path, error)
            raise

    def failed(self, path: Path, error: OSError) -> None:
        """Say what went wrong with a file; its volume is taken out if the disk is to blame."""
        if error.errno in _BROKEN:
            self._fail(self.index(path), error)

    def _fail(self, number: int, error: OSError) -> None:
        if number not in self._failed:
            self._failed[number] = error.strerror or str(error)
            log.error(
                "a volume failed: nothing new is written to it until the next start",
                volume=str(self.paths[number]),
                error=self._failed[number],
            )

    def failures(self) -> list[str]:
        """The volumes that failed, and why, in words."""
        return [f"{self.paths[number]}: {why}" for number, why in sorted(self._failed.items())]

    def check(self) -> None:
        """Write a small file to each volume, so that a broken one is found before it is needed."""
        for number, path in enumerate(self.paths):
            if number not in self._failed:
                try:
                    _try_write(path)
                except OSError as error:
                    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                        self._fail(number, error)


def open_volumes(data_dir: Path, weights: Mapping[Path, float]) -> Volumes:
    """The volumes of a service: `data_dir`, and those of its config.

    The folder of `data_dir` is made when it is not there, the others have to be: an empty mount
    point must not fill the disk below it. Each is marked when it is used for the first time; a
    known one without its mark is not mounted. Raises `VolumesUnusable`.
    """
    make_dirs_durably(data_dir)
    if not weights:
        return Volumes([data_dir])
    paths = [data_dir, *(path for path in weights if path != data_dir)]
    known = _known(data_dir / KNOWN)
    ids = {}
    for path in paths:
        try:
            ids[str(path)] = _marked(path, known.get(str(path)))
            _try_write(path)
        except OSError as error:
            raise VolumesUnusable(f"{path}: {error.strerror or error}") from error
    if len(set(ids.values())) < len(ids):
        raise VolumesUnusable(f"two of {', '.join(ids)} are the same folder")
    if ids != known:
        write_durably(data_dir / KNOWN, json.dumps(ids, indent=1).encode())
    return Volumes(paths, weights)


def _known(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise VolumesUnusable(
            f"{file} is damaged ({error}): mount all volumes, and remove it"
        ) from error


def _marked(folder: Path, expected: str | None) -> str:
    marker = folder / MARKER
    if not folder.is_dir():
        raise VolumesUnusable(f"{folder}: there is no such folder")
    try:
        found = marker.read_text().strip()
    except FileNotFoundError:
        found = ""
    if expected is not None and found != expected:
        raise VolumesUnusable(
            f"{folder} was a volume with the mark {expected}, and has "
            f"{f'the mark {found}' if found else 'none'} now: mount its disk; if the disk is lost, "
            "start once without this entry"
        )
    if not found:
        found = uuid.uuid4().hex
        write_durably(marker, f"{found}\n".encode())
    return found


def _try_write(folder: Path) -> None:
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"ready\n")
    finally:
        probe.unlink(missing_ok=True)
