# SPDX-License-Identifier: Apache-2.0
"""Whole blobs, each under the name of its digest, with small sidecar files beside it.

A file is under a blob's name only when the caller of `BlobStore.adopt` has verified it, so a name
is a promise. All methods block, and may be called from any thread.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from shoal.model.digest import ALGORITHMS, Digest, InvalidDigest
from shoal.store.durable import (
    fsync_dir,
    fsync_file,
    make_dirs_durably,
    write_plainly,
    write_synced,
)
from shoal.store.writer import BlobWriter

_STARTED = time.time()
"""Temp files from before this moment belong to a process that is gone."""

_CHECK_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is here, whole: its digest, file, and size in bytes."""

    digest: Digest
    path: Path
    size: int


class BlobStore:
    """Blobs as ``root/blobs/<algorithm>/<aa>/<hex>``, what is being received in ``root/incoming``.

    One process owns a root.
    """

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._incoming = root / "incoming"
        make_dirs_durably(self._blobs)
        make_dirs_durably(self._incoming)
        self._durable_folders = _make_folders(self._blobs)
        self._lock = threading.Lock()
        self._remove_leftovers()

    def path(self, digest: Digest) -> Path:
        """Where the blob is or would be."""
        return self._blobs / digest.algorithm / digest.hex[:2] / digest.hex

    def stat(self, digest: Digest) -> StoredBlob | None:
        """The blob if it is here. Its content is not read again."""
        path = self.path(digest)
        try:
            return StoredBlob(digest, path, path.stat().st_size)
        except FileNotFoundError:
            return None

    def writer(self, algorithm: str = "sha256") -> BlobWriter:
        """Return a writer of a new temp file; it promises nothing until `adopt`."""
        return BlobWriter(self.temp(), algorithm)

    def temp(self) -> Path:
        """A new name for a temp file that `adopt` can take; leftovers go at the next start."""
        return self._incoming / uuid.uuid4().hex

    def adopt(
        self, temp: Path, digest: Digest, sidecars: Mapping[str, bytes], *, durable: bool
    ) -> StoredBlob:
        """Give a verified file the blob's name, its sidecars first.

        `durable`: on return the content, the names of blob and sidecars, and the folders above are
        on stable storage; this is what a push may be acknowledged for. The sidecars' own content
        must be what can be made anew: after a power cut one may read as None, and each that waited
        for the disk would make a small blob half as slow again. Without `durable` (caches) all is
        in the page cache only: after a power cut the blob may be missing or damaged, after a crash
        of the process it is whole. Either way nobody sees the blob before its sidecars. On an error
        (disk full) the blob is not there, `temp` is left to the caller, and sidecars that stay
        behind are replaced by the next `adopt`.
        """
        path = self.path(digest)
        self._make_folder(path.parent, durable=durable)
        for name, data in sidecars.items():
            self._write_sidecar(path, name, data, durable=False)
        if durable:
            fsync_file(temp)
        size = temp.stat().st_size
        temp.replace(path)
        if durable:
            fsync_dir(path.parent)
        return StoredBlob(digest, path, size)

    def sidecar(self, digest: Digest, name: str) -> bytes | None:
        """What was written beside the blob under that name; a missing or damaged one is None."""
        try:
            raw = _sidecar_path(self.path(digest), name).read_bytes()
        except FileNotFoundError:
            return None
        data, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
        return data if blake3(data).digest() == check else None

    def write_sidecar(self, digest: Digest, name: str, data: bytes, *, durable: bool) -> None:
        """Write or replace a sidecar; readers see the old or the new one, whole.

        `durable`: on return content and name are on stable storage; otherwise in the page cache
        only.
        """
        path = self.path(digest)
        self._make_folder(path.parent, durable=durable)
        self._write_sidecar(path, name, data, durable=durable)
        if durable:
            fsync_dir(path.parent)

    def delete(self, digest: Digest) -> bool:
        """Remove a blob and its sidecars; whether it was here.

        Readers that have it open can finish. Not synced: after a power cut the blob may be back,
        whole.
        """
        path = self.path(digest)
        try:
            path.unlink()
            found = True
        except FileNotFoundError:
            found = False
        with suppress(FileNotFoundError):
            for sidecar in path.parent.glob(f"{path.name}.*"):
                sidecar.unlink(missing_ok=True)
        return found

    def digests(self) -> Iterator[Digest]:
        """The blobs that are here, in no order; those that come or go meanwhile may be missed."""
        for algorithm in ALGORITHMS:
            for folder in _entries(self._blobs / algorithm):
                for name in _entries(self._blobs / algorithm / folder):
                    with suppress(InvalidDigest):
                        yield Digest.parse(f"{algorithm}:{name}")

    def _write_sidecar(self, path: Path, name: str, data: bytes, *, durable: bool) -> None:
        write = write_synced if durable else write_plainly
        write(_sidecar_path(path, name), data + blake3(data).digest())

    def _make_folder(self, folder: Path, *, durable: bool) -> None:
        if not durable:
            folder.mkdir(parents=True, exist_ok=True)
            return
        with self._lock:
            if folder in self._durable_folders:
                return
        # A folder that is there may have been made without a sync, or by a process that crashed.
        folder.mkdir(parents=True, exist_ok=True)
        fsync_dir(folder.parent)
        fsync_dir(self._blobs)
        with self._lock:
            self._durable_folders.add(folder)

    def _remove_leftovers(self) -> None:
        for entry in os.scandir(self._incoming):
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < _STARTED:
                    Path(entry.path).unlink()


def _make_folders(blobs: Path) -> set[Path]:
    """Make the folders of the usual algorithm, on stable storage, so that no blob waits for it."""
    above = blobs / "sha256"
    folders = {above / f"{number:02x}" for number in range(256)}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    fsync_dir(above)
    fsync_dir(blobs)
    return folders


def _sidecar_path(path: Path, name: str) -> Path:
    if not name.isidentifier():
        raise ValueError(f"{name!r} is not the name of a sidecar: letters, digits and _")
    return path.with_name(f"{path.name}.{name}")


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
