# SPDX-License-Identifier: Apache-2.0
"""The blobs on this origin's disk. A copy that is not whole is not a copy.

Everything here blocks: call it in worker threads.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import structlog

from shoal.model.digest import Digest, new_hasher
from shoal.origin.retention import Copy, stays
from shoal.store.blobs import BlobStore, StoredBlob
from shoal.swarm.metainfo import InvalidMetainfo, Metainfo, PieceHasher, piece_size_for

METAINFO = "metainfo"
"""Name of the sidecar that holds a blob's metainfo."""

KEPT = "kept"
"""Name of the sidecar of a blob that garbage collection leaves alone."""

DAMAGED = ".damaged"
"""Suffix of a copy that was set aside."""

_READ = 1024 * 1024

_MAX_WRITTEN = 65_536
"""Blobs that are remembered as written by this process."""

_LOCKS = 256
"""Locks that all digests share: enough that two in use at once rarely have the same one."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Whole:
    """A copy that is as long as its metainfo says."""

    blob: StoredBlob
    metainfo: Metainfo


class LocalBlobs:
    """Finds whole copies, sets damaged ones aside, takes in verified ones, gives up unused ones.

    The time of last access (atime) says when somebody last relied on a copy. It is set, and a copy
    is given up, under the digest's lock: whoever was told "it is here" by a call with `rely` finds
    the copy here until it has been unused for the grace time.
    """

    def __init__(self, store: BlobStore, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives epoch seconds."""
        self._store = store
        self._clock = clock
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._reading = threading.Lock()
        self._noting = threading.Lock()
        self._written: dict[Digest, tuple[int, int]] = {}
        self._in_use: Counter[Digest] = Counter()

    def find(self, digest: Digest) -> Whole | None:
        """The copy on this disk, or None when there is none or it turned out to be damaged."""
        blob = self._store.stat(digest)
        if blob is None:
            return None
        metainfo = self._metainfo(digest) or self._rebuild(digest)
        if metainfo is None:
            return None
        if blob.size != metainfo.size:
            blob = self._set_aside(digest, metainfo)
        return None if blob is None else Whole(blob, metainfo)

    def rely(self, digest: Digest, *, kept: bool = False) -> Whole | None:
        """As `find`, for one who relies on the copy from now on: the grace time begins anew.

        `kept`: garbage collection leaves the blob alone for good; durable on return.
        """
        whole = self.find(digest)
        if whole is None:
            return None
        with self._lock(digest):
            try:
                self._touch(whole.blob.path)
            except FileNotFoundError:
                return None
            if kept and not self.is_kept(digest):
                self._store.write_sidecar(digest, KEPT, b"", durable=True)
        return whole

    def sizes(
        self, digests: Iterable[Digest], *, rely: bool = False, kept: bool = False
    ) -> dict[Digest, int]:
        """Sizes of those that are here and whole; `rely` and `kept` as in `rely`."""

        def look(digest: Digest) -> Whole | None:
            return self.rely(digest, kept=kept) if rely or kept else self.find(digest)

        found = ((digest, look(digest)) for digest in digests)
        return {digest: whole.metainfo.size for digest, whole in found if whole is not None}

    def keep(self, file: Path, metainfo: Metainfo, *, kept: bool = False) -> StoredBlob:
        """Move a verified file into place; when this returns, it is on stable storage.

        `kept`: garbage collection leaves the blob alone for good.
        """
        digest = Digest.parse(metainfo.digest)
        sidecars = {METAINFO: metainfo.encode()} | ({KEPT: b""} if kept else {})
        with self._lock(digest):
            # An upload in many chunks may have been written to for the last time long ago.
            self._touch(file)
            blob = self._store.adopt(file, digest, sidecars, durable=True)
        with self._noting:
            self._written[digest] = _stamp(blob.path)
            if len(self._written) > _MAX_WRITTEN:
                del self._written[next(iter(self._written))]
        return blob

    def is_as_written(self, whole: Whole) -> bool:
        """Whether this process wrote the copy, from verified bytes, and nobody touched it since."""
        with self._noting:
            written = self._written.get(whole.blob.digest)
        return written is not None and written == _stamp(whole.blob.path)

    def is_kept(self, digest: Digest) -> bool:
        """Whether garbage collection leaves the blob alone. A damaged mark is a mark, too."""
        path = self._store.path(digest)
        return path.with_name(f"{path.name}.{KEPT}").exists()

    @contextmanager
    def in_use(self, digest: Digest) -> Iterator[None]:
        """Meanwhile the copy, if there is one, is not given up."""
        with self._noting:
            self._in_use[digest] += 1
        try:
            yield
        finally:
            with self._noting:
                self._in_use[digest] -= 1
                if not self._in_use[digest]:
                    del self._in_use[digest]

    def copies(self) -> Iterator[Copy]:
        """All blobs that are here, in no order; those that come or go meanwhile may be missed."""
        for digest in self._store.digests():
            copy = self._copy(digest)
            if copy is not None:
                yield copy

    def give_up(self, digest: Digest, cutoff: float) -> int | None:
        """Remove the copy unless it has to stay after all; the bytes freed, or None.

        `cutoff` in epoch seconds: a copy that was used since then stays.
        """
        with self._lock(digest):
            copy = self._copy(digest)
            if copy is None or stays(copy, cutoff) is not None:
                return None
            self._store.delete(digest)
        with self._noting:
            self._written.pop(digest, None)
        return copy.size

    def _copy(self, digest: Digest) -> Copy | None:
        try:
            status = self._store.path(digest).stat()
        except FileNotFoundError:
            return None
        with self._noting:
            in_use = digest in self._in_use
        last_used = max(status.st_atime, status.st_mtime)
        return Copy(digest, status.st_size, last_used, self.is_kept(digest), in_use)

    def _lock(self, digest: Digest) -> threading.Lock:
        return self._locks[hash(digest) % _LOCKS]

    def _touch(self, path: Path) -> None:
        # The time of modification stays: `is_as_written` goes by it.
        used = round(self._clock() * 1e9)
        os.utime(path, ns=(used, path.stat().st_mtime_ns))

    def _metainfo(self, digest: Digest) -> Metainfo | None:
        data = self._store.sidecar(digest, METAINFO)
        if data is None:
            return None
        try:
            metainfo = Metainfo.decode(data)
        except InvalidMetainfo as error:
            log.warning("metainfo unreadable", digest=str(digest), error=str(error))
            return None
        return metainfo if metainfo.digest == str(digest) else None

    def recheck(self, digest: Digest) -> bool:
        """Read the whole copy again; set it aside, and return False, when it has another digest."""
        with self._reading:
            return self._measure(digest) is not None

    def _rebuild(self, digest: Digest) -> Metainfo | None:
        """Make a lost metainfo anew from the blob, if that still is what it should be."""
        with self._reading:
            metainfo = self._metainfo(digest) or self._measure(digest)
            if metainfo is not None and self._store.sidecar(digest, METAINFO) is None:
                self._store.write_sidecar(digest, METAINFO, metainfo.encode(), durable=True)
                log.warning("metainfo rebuilt", digest=str(digest), size=metainfo.size)
            return metainfo

    def _measure(self, digest: Digest) -> Metainfo | None:
        """The metainfo made from the copy; one with another digest is set aside."""
        path = self._store.path(digest)
        try:
            with path.open("rb", buffering=0) as file:
                metainfo = measure(file, digest.algorithm)
                if metainfo.digest == str(digest):
                    return metainfo
                replaced = os.fstat(file.fileno()).st_ino != path.stat().st_ino
        except FileNotFoundError:
            return None
        if replaced:
            return self._metainfo(digest)  # A good copy took its place while this one was read.
        log.error("set aside a damaged copy", digest=str(digest), found=metainfo.digest)
        path.rename(damaged(path))
        return None

    def _set_aside(self, digest: Digest, metainfo: Metainfo) -> StoredBlob | None:
        path = self._store.path(digest)
        aside = damaged(path)
        try:
            os.rename(path, aside)
            found = aside.stat().st_size
        except FileNotFoundError:
            return None
        if found == metainfo.size:
            # A good copy had taken the damaged one's place since its size was read.
            os.rename(aside, path)
            return self._store.stat(digest)
        log.error(
            "set aside a damaged copy", digest=str(digest), size=found, expected=metainfo.size
        )
        return None


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when somebody writes to the file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def damaged(path: Path) -> Path:
    """Where a damaged copy is kept, out of every reader's way."""
    return path.with_name(path.name + DAMAGED)


def measure(file: FileIO, algorithm: str) -> Metainfo:
    """Read an open file once, from its start: its digest, size and pieces."""
    hasher = new_hasher(algorithm)
    buffer = memoryview(bytearray(_READ))
    pieces = PieceHasher(piece_size_for(os.fstat(file.fileno()).st_size))
    size = 0
    while count := file.readinto(buffer):
        hasher.update(buffer[:count])
        pieces.update(buffer[:count])
        size += count
    digest = f"{algorithm}:{hasher.hexdigest()}"
    return Metainfo(digest, size, pieces.piece_size, pieces.finish())
