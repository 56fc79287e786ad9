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
from collections.abc import Iterable, Iterator, Mapping
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
from shoal.store.full import is_unreadable
from shoal.store.volumes import Volumes
from shoal.store.writer import BlobWriter

_STARTED = time.time()
"""Temp files from before this moment belong to a process that is gone."""

_CHECK_BYTES: Final = 32

_LOCKS: Final = 256
"""Locks that all digests share: enough that two in use at once rarely have the same one."""

_MAX_SIDECAR: Final = 64 * 1024 * 1024

_BLOBS: Final = "blobs"
_INCOMING: Final = "incoming"


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is here, whole: its digest, file, and size in bytes."""

    digest: Digest
    path: Path
    size: int


class BlobStore:
    """Blobs as ``root/blobs/<algorithm>/<aa>/<hex>``, what is being received in ``root/incoming``.

    With several volumes each has both, so that a file never has to move to another disk. One
    process owns a root.
    """

    def __init__(self, root: Path | Volumes) -> None:
        self.volumes = root if isinstance(root, Volumes) else Volumes([root])
        self._durable_folders: set[Path] = set()
        self._lock = threading.Lock()
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        for folder in self.folders():
            self.make_again(folder)
            _remove_leftovers(folder.parent)

    def make_again(self, folder: Path) -> None:
        """Make what belongs to one of `folders` on its volume, as it was removed meanwhile."""
        with self._lock:
            self._durable_folders -= {
                each for each in self._durable_folders if folder in each.parents
            }
        make_dirs_durably(folder)
        make_dirs_durably(folder.parent / _INCOMING)
        made = _make_folders(folder)
        with self._lock:
            self._durable_folders |= made

    def folders(self) -> list[Path]:
        """The folder of the blobs on each volume."""
        return [volume / _BLOBS for volume in self.volumes.paths]

    def places(self, digest: Digest) -> list[Path]:
        """Where the blob may be: one place on each volume."""
        return [_blob_path(volume, digest) for volume in self.volumes.paths]

    def path(self, digest: Digest) -> Path:
        """Where the blob is or would be."""
        if len(self.volumes.paths) == 1:
            return _blob_path(self.volumes.paths[0], digest)
        volume = self._holder(digest)
        return _blob_path(self.volumes.choose(str(digest)) if volume is None else volume, digest)

    def _holder(self, digest: Digest) -> Path | None:
        """The first volume on which the blob is."""
        for volume in self.volumes.paths:
            path = _blob_path(volume, digest)
            try:
                path.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                self.volumes.failed(path, error)
                continue
            return volume
        return None

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

    def temp(self, digest: Digest | None = None, *, beside: Path | None = None) -> Path:
        """A new name for a temp file that `adopt` can take; leftovers go at the next start.

        It lies where a blob of that digest belongs, or on the volume of the file `beside`.
        """
        name = uuid.uuid4().hex
        if beside is not None:
            volume = self.volumes.of(beside)
        elif len(self.volumes.paths) == 1:
            volume = self.volumes.paths[0]
        else:
            holder = None if digest is None else self._holder(digest)
            volume = holder or self.volumes.choose(name if digest is None else str(digest))
        return volume / _INCOMING / name

    def adopt(
        self, temp: Path, digest: Digest, sidecars: Mapping[str, bytes], *, durable: bool
    ) -> StoredBlob:
        """Give a verified file the blob's name on its own volume, its sidecars first.

        `durable`: on return the content, the names of blob and sidecars, and the folders above are
        on stable storage; this is what a push may be acknowledged for. The sidecars' own content
        must be what can be made anew: after a power cut one may read as None, and each that waited
        for the disk would make a small blob half as slow again. Without `durable` (caches) all is
        in the page cache only: after a power cut the blob may be missing or damaged, after a crash
        of the process it is whole. Either way nobody sees the blob before its sidecars. On an error
        (disk full) the blob is not there, unless it was before, and `temp` is left to the caller.
        """
        path = _blob_path(self.volumes.of(temp), digest)
        with self.volumes.watching(path):
            self._make_folder(path.parent, durable=durable)
            if durable:
                fsync_file(temp)
            size = temp.stat().st_size
            with self._lock_of(digest):
                self._place(temp, path, digest, sidecars, durable=durable)
                self._remove_others(path, digest)
        return StoredBlob(digest, path, size)

    def _place(
        self,
        temp: Path,
        path: Path,
        digest: Digest,
        sidecars: Mapping[str, bytes],
        *,
        durable: bool,
    ) -> None:
        written = self._carried(path, digest, sidecars)
        before = {each for each in (path, *_sidecar_paths(path, written)) if each.exists()}
        staged = self._staged(path, digest)
        temp.replace(staged)
        try:
            for name, data in written.items():
                self._write_sidecar(path, name, data, durable=False)
            staged.replace(path)
            if durable:
                fsync_dir(path.parent)
        except BaseException:
            # What cannot be undone on this disk now is done at the next start.
            for each in {path, *_sidecar_paths(path, written)} - before:
                with suppress(OSError):
                    each.unlink()
            with suppress(OSError):
                staged.replace(temp)
            raise

    def _staged(self, path: Path, digest: Digest) -> Path:
        """A name for a blob that comes or goes while its sidecars are there without it.

        It tells the next start whose sidecars they are, should this process not live to the end.
        """
        name = f"{uuid.uuid4().hex}.{digest.algorithm}-{digest.hex}"
        return self.volumes.of(path) / _INCOMING / name

    def _lock_of(self, digest: Digest) -> threading.Lock:
        return self._locks[hash(digest) % len(self._locks)]

    def _carried(
        self, path: Path, digest: Digest, sidecars: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        """The sidecars, and those of a copy on another volume, whose place this one takes."""
        carried: dict[str, bytes] = {}
        for other in self._others(path, digest):
            with suppress(OSError):
                for beside in other.parent.glob(f"{other.name}.*"):
                    data = _read_sidecar(beside) if _is_small(beside) else None
                    if data is not None:
                        carried[beside.name.removeprefix(f"{other.name}.")] = data
        return carried | dict(sidecars)

    def _remove_others(self, path: Path, digest: Digest) -> None:
        for other in self._others(path, digest):
            with suppress(OSError):
                self._delete(other, digest)

    def _others(self, path: Path, digest: Digest) -> Iterator[Path]:
        """Where the blob might be on other volumes than that of `path`."""
        for volume in self.volumes.paths:
            other = _blob_path(volume, digest)
            if other != path and other.exists():
                yield other

    def sidecar(self, digest: Digest, name: str) -> bytes | None:
        """What was written beside the blob under that name; a missing or damaged one is None."""
        return _read_sidecar(_sidecar_path(self.path(digest), name))

    def is_marked(self, digest: Digest, name: str) -> bool:
        """Whether there is a sidecar of that name, readable or not; also of a blob set aside."""
        if _sidecar_path(self.path(digest), name).exists():
            return True
        for place in self.places(digest) if len(self.volumes.paths) > 1 else ():
            with suppress(OSError):  # a volume that failed says nothing of the others
                if _sidecar_path(place, name).exists():
                    return True
        return False

    def write_sidecar(self, digest: Digest, name: str, data: bytes, *, durable: bool) -> None:
        """Write or replace a sidecar; readers see the old or the new one, whole.

        `durable`: on return content and name are on stable storage; otherwise in the page cache
        only.
        """
        path = self.path(digest)
        with self.volumes.watching(path):
            self._make_folder(path.parent, durable=durable)
            self._write_sidecar(path, name, data, durable=durable)
            if durable:
                fsync_dir(path.parent)

    def delete(self, digest: Digest) -> bool:
        """Remove a blob and its sidecars; whether it was here.

        Readers that have it open can finish. Not synced: after a power cut the blob may be back,
        whole.
        """
        with self._lock_of(digest):
            found = [
                self._delete(_blob_path(volume, digest), digest) for volume in self.volumes.paths
            ]
        return any(found)

    def _delete(self, path: Path, digest: Digest) -> bool:
        staged = self._staged(path, digest)
        try:
            path.replace(staged)
            found = True
        except FileNotFoundError:
            found = False
        except OSError:
            path.unlink()  # a disk so full that no file can get another name
            found = True
        for sidecar in path.parent.glob(f"{path.name}.*"):
            sidecar.unlink(missing_ok=True)
        staged.unlink(missing_ok=True)
        return found

    def digests(self, *, after: str = "", suffix: str = "") -> Iterator[Digest]:
        """The blobs that are here, in the order of their digests' text, those `after` one only.

        Those that come or go meanwhile may be missed. With `suffix`: those that have a file of
        their name and that suffix, whether they are here or not.
        """
        for algorithm in sorted(ALGORITHMS):
            above = [folder / algorithm for folder in self.folders()]
            for folder in self._names(above):
                if f"{algorithm}:{folder}" < after[: len(f"{algorithm}:{folder}")]:
                    continue
                for name in self._names([each / folder for each in above]):
                    if not name.endswith(suffix):
                        continue
                    with suppress(InvalidDigest):
                        digest = Digest.parse(f"{algorithm}:{name.removesuffix(suffix)}")
                        if str(digest) > after:
                            yield digest

    def _names(self, folders: Iterable[Path]) -> list[str]:
        return sorted({name for folder in folders for name in self._entries(folder)})

    def _entries(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            if len(self.volumes.paths) == 1:
                raise
            self.volumes.failed(folder, error)
            return []  # what the other volumes have is still to be seen

    def _write_sidecar(self, path: Path, name: str, data: bytes, *, durable: bool) -> None:
        write = write_synced if durable else write_plainly
        temp = self.temp(beside=path)
        write(_sidecar_path(path, name), data + blake3(data).digest(), temp=temp)

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
        fsync_dir(folder.parent.parent)
        with self._lock:
            self._durable_folders.add(folder)


def _blob_path(volume: Path, digest: Digest) -> Path:
    return volume / _BLOBS / digest.algorithm / digest.hex[:2] / digest.hex


def _is_small(path: Path) -> bool:
    """Whether it may be a sidecar; beside a blob there can also be a damaged copy of it."""
    return path.stat().st_size <= _MAX_SIDECAR


def _read_sidecar(path: Path) -> bytes | None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        if is_unreadable(error):
            return None
        raise
    data, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    return data if blake3(data).digest() == check else None


def _remove_leftovers(volume: Path) -> None:
    for entry in os.scandir(volume / _INCOMING):
        with suppress(FileNotFoundError):
            if entry.stat(follow_symlinks=False).st_mtime < _STARTED:
                _remove_orphans(volume, entry.name)
                Path(entry.path).unlink()


def _remove_orphans(volume: Path, staged: str) -> None:
    """Remove the sidecars of a blob that a process was placing, or deleting, when it ended."""
    try:
        digest = Digest.parse(staged.partition(".")[2].replace("-", ":"))
    except InvalidDigest:
        return
    path = _blob_path(volume, digest)
    beside = list(path.parent.glob(f"{path.name}.*"))
    # What else lies there, such as a damaged copy, keeps its sidecars for the next good one.
    if not path.exists() and all(
        _is_small(each) and _read_sidecar(each) is not None for each in beside
    ):
        for each in beside:
            each.unlink(missing_ok=True)


def _make_folders(blobs: Path) -> set[Path]:
    """Make the folders of the usual algorithm, on stable storage, so that no blob waits for it."""
    above = blobs / "sha256"
    folders = {above / f"{number:02x}" for number in range(256)}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    fsync_dir(above)
    fsync_dir(blobs)
    return folders


def _sidecar_paths(path: Path, names: Iterable[str]) -> list[Path]:
    return [_sidecar_path(path, name) for name in names]


def _sidecar_path(path: Path, name: str) -> Path:
    if not name.isidentifier():
        raise ValueError(f"{name!r} is not the name of a sidecar: letters, digits and _")
    return path.with_name(f"{path.name}.{name}")
