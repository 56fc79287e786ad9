# SPDX-License-Identifier: Apache-2.0
"""The blobs on this host's disk: complete ones, and partial ones under ``partial/``.

A cache: nothing is synced to the disk. What a crash or a power cut leaves behind is checked piece
by piece before it is used, and fetched again where it is wrong. Everything here blocks: call it
in worker threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

from shoal.model.digest import Digest, InvalidDigest
from shoal.store.blobs import BlobStore
from shoal.store.eviction import CachedBlob
from shoal.store.volumes import Volumes
from shoal.swarm import bits as bitset
from shoal.swarm.metainfo import InvalidMetainfo, Metainfo, metainfo_of
from shoal.swarm.pieces import PieceFile, SharedFile

_METAINFO = "metainfo"

_USED_EVERY = 60.0
"""Seconds: the time of the last use is not noted more often than this."""

Standing = tuple[bool, float]
"""Whether a blob is in use now, and when it was in use last (epoch seconds)."""


class Library:
    """The cache of one agent."""

    def __init__(self, root: Path, executor: Executor) -> None:
        """`executor` runs the checks of pieces."""
        self._store = BlobStore(root)
        self._partial = root / "partial"
        self._partial.mkdir(parents=True, exist_ok=True)
        self._executor = executor

    def complete(self, digest: Digest) -> PieceFile | None:
        """A cached blob; its pieces are still to be checked.

        A file without a usable metainfo becomes a partial blob, whose pieces are checked against
        the metainfo of the swarm.
        """
        blob = self._store.stat(digest)
        if blob is None:
            return None
        metainfo = self._metainfo(digest)
        if metainfo is None:
            self.demote(digest)
            return None
        try:
            file = SharedFile(blob.path)
        except FileNotFoundError:
            return None
        _note_use(blob.path)
        everything = bitset.full(metainfo.count)
        return PieceFile(metainfo, file, self._executor, present=everything, verified=0)

    def size(self, digest: Digest) -> int | None:
        """The size of a cached blob."""
        if self._store.stat(digest) is None:
            return None
        metainfo = self._metainfo(digest)
        return None if metainfo is None else metainfo.size

    def _metainfo(self, digest: Digest) -> Metainfo | None:
        data = self._store.sidecar(digest, _METAINFO)
        if data is None:
            return None
        try:
            metainfo = Metainfo.decode(data)
        except InvalidMetainfo:
            return None
        return metainfo if metainfo.digest == str(digest) else None

    def partial(self, metainfo: Metainfo) -> PieceFile:
        """The partial blob, or a new and empty one; pieces with data are still to be checked."""
        file = SharedFile(self.partial_path(Digest.parse(metainfo.digest)), create=metainfo.size)
        present = _pieces_with_data(file.fd, metainfo)
        return PieceFile(metainfo, file, self._executor, present=present, verified=0)

    def finish(self, pieces: PieceFile) -> None:
        """A partial blob is whole and its digest right: it becomes a cached one."""
        sidecars = {_METAINFO: pieces.metainfo.encode()}
        self._store.adopt(self.partial_path(pieces.digest), pieces.digest, sidecars, durable=False)

    def demote(self, digest: Digest) -> bool:
        """A cached blob turned out to be damaged: it becomes a partial one, if it is still here."""
        try:
            os.replace(self._store.path(digest), self.partial_path(digest))
            kept = True
        except FileNotFoundError:
            kept = False
        self._store.delete(digest)
        return kept

    def discard_partial(self, digest: Digest) -> None:
        """What came is not the blob: nothing of it is kept."""
        self.partial_path(digest).unlink(missing_ok=True)

    def delete(self, digest: Digest) -> bool:
        """Remove a blob, complete or partial; whether there was one."""
        partial = self.partial_path(digest)
        found = partial.exists()
        partial.unlink(missing_ok=True)
        return self._store.delete(digest) or found

    def read_small(self, digest: Digest) -> bytes | None:
        """A cached manifest, its digest verified; a damaged one is removed."""
        path = self._store.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if Digest.of(data, digest.algorithm) == digest:
            _note_use(path)
            return data
        self._store.delete(digest)
        return None

    def keep_small(self, digest: Digest, data: bytes) -> None:
        """Cache a manifest, whose digest is right; peers may have it."""
        temp = self._store.temp()
        sidecars = {_METAINFO: metainfo_of(data, digest).encode()}
        try:
            temp.write_bytes(data)
            self._store.adopt(temp, digest, sidecars, durable=False)
        except OSError:
            temp.unlink(missing_ok=True)  # what lies on a full disk keeps it full
            raise

    def digests(self) -> list[Digest]:
        """The cached blobs that peers may want: those with a metainfo."""
        return [
            digest
            for digest in self._store.digests()
            if self._store.sidecar(digest, _METAINFO) is not None
        ]

    @property
    def volumes(self) -> Volumes:
        """Where it lies."""
        return self._store.volumes

    def blobs(self, standing: Callable[[Digest], Standing]) -> Iterator[CachedBlob]:
        """All that is here, complete or partial, for the choice of what to evict."""
        for digest in self._store.digests():
            entry = _cached(digest, self._store.path(digest), standing)
            if entry is not None:
                yield entry
        for name in os.listdir(self._partial):
            try:
                digest = Digest.parse(name.replace("-", ":", 1))
            except InvalidDigest:
                continue
            entry = _cached(digest, self._partial / name, standing)
            if entry is not None:
                yield entry

    def partial_path(self, digest: Digest) -> Path:
        """Where a blob is while it is being fetched."""
        return self._partial / f"{digest.algorithm}-{digest.hex}"


def _cached(
    digest: Digest, path: Path, standing: Callable[[Digest], Standing]
) -> CachedBlob | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    in_use, used = standing(digest)
    last_used = max(status.st_atime, status.st_mtime, used)
    # A partial blob is a sparse file.
    return CachedBlob(digest, status.st_blocks * 512, last_used, in_use)


def _note_use(path: Path) -> None:
    """Set the time of last access; that of modification tells whether somebody changed the file."""
    now = time.time()
    with suppress(OSError):
        status = path.stat()
        if now - status.st_atime > _USED_EVERY:
            os.utime(path, ns=(round(now * 1e9), status.st_mtime_ns))


def _pieces_with_data(fd: int, metainfo: Metainfo) -> int:
    """The pieces no byte of which lies in a hole of the sparse file."""
    present = 0
    position = 0
    while position < metainfo.size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError:  # ENXIO: no data behind this position
            break
        first = -(-start // metainfo.piece_size)
        last = metainfo.count if position >= metainfo.size else position // metainfo.piece_size
        if last > first:
            present |= bitset.full(last - first) << first
    return present
