# SPDX-License-Identifier: Apache-2.0
"""One blob being received: what arrives is written and hashed in one pass. All of it blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

from shoal.model.digest import Digest, Hasher, new_hasher

_IOV_MAX = 1024
_READ_BYTES = 4 * 1024 * 1024

Chunk = bytes | bytearray | memoryview


class Pieces(Protocol):
    """What else wants to see the bytes, in order: a hasher of the blob's pieces."""

    def update(self, data: Chunk, /) -> None: ...


class BlobWriter:
    """Appends to a file and hashes what it appends; one thread at a time, but for `sync`.

    `size` counts the bytes appended so far. The file is opened when it is first needed, and again
    after `close`.
    """

    def __init__(
        self,
        path: Path,
        algorithm: str = "sha256",
        pieces: Pieces | None = None,
        *,
        _resumed: tuple[Hasher, int] | None = None,
    ) -> None:
        """Make a new file; it must not exist."""
        self.path = path
        self.algorithm = algorithm
        self._pieces = pieces
        self._lock = threading.Lock()
        self._appending = threading.Lock()
        self._fd: int | None = None
        self._broken: OSError | None = None
        if _resumed is None:
            self._hasher, self.size = new_hasher(algorithm), 0
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        else:
            self._hasher, self.size = _resumed

    @classmethod
    def resume(cls, path: Path, algorithm: str = "sha256") -> Self:
        """A writer that goes on where a file ends; reads and hashes the whole file."""
        hasher, size = new_hasher(algorithm), 0
        for chunk in _read(path):
            hasher.update(chunk)
            size += len(chunk)
        return cls(path, algorithm, _resumed=(hasher, size))

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Write and hash a batch. Promises nothing for a power cut before `sync`.

        On an `OSError` (disk full) the file and the hash are as they were before the batch.
        """
        with self._appending:
            self._check()
            descriptor = self._open()
            try:
                _write_all(descriptor, chunks)
            except OSError:
                self._undo(descriptor)
                raise
        for chunk in chunks:
            self._hasher.update(chunk)
            if self._pieces is not None:
                self._pieces.update(chunk)
            self.size += len(chunk)

    def _undo(self, descriptor: int) -> None:
        try:
            os.ftruncate(descriptor, self.size)
            os.lseek(descriptor, self.size, os.SEEK_SET)
        except OSError as error:
            # The file is longer than what was hashed, and would be taken for something else.
            self._broken = error

    def _check(self) -> None:
        if self._broken is not None:
            raise OSError(
                self._broken.errno, f"{self.path} could not be written: {self._broken.strerror}"
            )

    def digest(self, algorithm: str | None = None) -> Digest:
        """The digest of what was appended so far.

        In the writer's own algorithm it is known; for another one the file is read again. Raises
        `OSError` when the file is not what was appended.
        """
        self._check()
        if algorithm is None or algorithm == self.algorithm:
            return Digest(self.algorithm, self._hasher.hexdigest())
        hasher = new_hasher(algorithm)
        for chunk in _read(self.path):
            hasher.update(chunk)
        return Digest(algorithm, hasher.hexdigest())

    def sync(self) -> None:
        """Return when what was appended before the call is on stable storage (not the file's name).

        When that fails, so does all that comes after it: what is on the disk is not known any more.
        May be called while another thread appends, so that the disk works meanwhile.
        """
        with self._lock:
            # A duplicate, because `close` in another thread may give the number to another file.
            descriptor = (
                os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
                if self._fd is None
                else os.dup(self._fd)
            )
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            # The system says so once, and may have let go of the bytes: a later sync would succeed.
            self._broken = error
            raise
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of the file, which stays; a later `append` opens it again.

        Waits for an `append` under way, whose caller may have been cancelled: its descriptor's
        number could be another file's by then.
        """
        with self._appending, self._lock:
            descriptor, self._fd = self._fd, None
        if descriptor is not None:
            os.close(descriptor)

    def discard(self) -> None:
        """Close and remove the file. No error when it is gone, or was adopted."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _open(self) -> int:
        with self._lock:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
                os.lseek(self._fd, self.size, os.SEEK_SET)
            return self._fd


def _write_all(descriptor: int, chunks: Sequence[Chunk]) -> None:
    views = [memoryview(chunk).cast("B") for chunk in chunks if len(chunk)]
    start = 0
    while start < len(views):
        written = os.writev(descriptor, views[start : start + _IOV_MAX])
        while start < len(views) and written >= len(views[start]):
            written -= len(views[start])
            start += 1
        if written:
            views[start] = views[start][written:]


def _read(path: Path) -> Iterator[memoryview]:
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield view[:count]
