# SPDX-License-Identifier: Apache-2.0
"""The blobs on this origin's disk. A copy that is not whole is not a copy.

Everything here blocks: call it in worker threads.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from shoal.model.digest import Digest
from shoal.origin.backing import UNBACKED, Backing
from shoal.origin.measuring import measure
from shoal.origin.retention import Copy, stays
from shoal.origin.unreadable import note_unreadable, sizes_of
from shoal.store.blobs import BlobStore, StoredBlob
from shoal.store.full import is_unreadable
from shoal.swarm.metainfo import InvalidMetainfo, Metainfo

METAINFO = "metainfo"
"""Name of the sidecar that holds a blob's metainfo."""

KEPT = "kept"
"""Name of the sidecar of a blob that garbage collection leaves alone."""

DAMAGED = ".damaged"
"""Suffix of a copy that was set aside."""

_MAX_WRITTEN = 65_536
"""Blobs that are remembered as written by this process."""

_USED_EVERY = 60.0
"""Seconds: that a copy is read is not noted more often than this."""

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
        self.backing = Backing(store)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._reading = threading.Lock()
        self._noting = threading.Lock()
        self._written: dict[Digest, tuple[int, int]] = {}
        self._in_use: Counter[Digest] = Counter()
        self._pinned: Callable[[Digest], bool] = lambda _: False
        self._held: dict[Digest, float] = {}
        self._quiet: dict[Digest, int | None] = {}
        self._on_damage: Callable[[Digest], None] = lambda _: None

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

    def rely(
        self, digest: Digest, *, kept: bool = False, used: float | None = None
    ) -> Whole | None:
        """As `find`, for one who relies on the copy from now on: the grace time begins anew.

        `kept`: garbage collection leaves the blob alone for good; durable on return. `used` (epoch
        seconds): somebody relied on it then, and not now.
        """
        whole = self.find(digest)
        if whole is None:
            return None
        with self._lock(digest):
            try:
                self._touch(digest, whole.blob.path, used)
            except FileNotFoundError:
                return None
            if kept and not self.is_kept(digest):
                self._store.write_sidecar(digest, KEPT, b"", durable=True)
        return whole

    def hold(
        self,
        digests: Iterable[Digest],
        seconds: float,
        *,
        kept: bool = False,
        unbacked: bool = False,
    ) -> dict[Digest, int]:
        """Sizes of those that are here and whole, for a host that gives up its own copies of them.

        `give_up_spare` spares these for so many seconds. `kept` as in `rely`; `unbacked` as in
        `note_unbacked`.
        """

        def hold(digest: Digest) -> int | None:
            whole = self.find(digest)
            if whole is None:
                return None
            with self._lock(digest):
                if not whole.blob.path.exists():
                    return None
                self._hold(digest, seconds)
                if kept and not self.is_kept(digest):
                    self._store.write_sidecar(digest, KEPT, b"", durable=True)
                if unbacked:
                    self.backing.note_unbacked(digest)
            return whole.metainfo.size

        return sizes_of(digests, hold)

    def _hold(self, digest: Digest, seconds: float) -> None:
        now = time.monotonic()
        with self._noting:
            self._held.pop(digest, None)
            self._held[digest] = now + seconds
            # All are held for the same time, so that the first ones are the first to end.
            while self._held[(oldest := next(iter(self._held)))] <= now:
                del self._held[oldest]

    def sizes(
        self, digests: Iterable[Digest], *, rely: bool = False, kept: bool = False
    ) -> dict[Digest, int]:
        """Sizes of those that are here and whole; `rely` and `kept` as in `rely`."""

        def look(digest: Digest) -> int | None:
            whole = self.rely(digest, kept=kept) if rely or kept else self.find(digest)
            return None if whole is None else whole.metainfo.size

        return sizes_of(digests, look)

    def keep(
        self,
        file: Path,
        metainfo: Metainfo,
        *,
        kept: bool = False,
        used: float | None = None,
        backed: Collection[str] = (),
        unbacked: bool = False,
    ) -> StoredBlob:
        """Move a verified file into place; when this returns, it is on stable storage.

        `kept`: garbage collection leaves the blob alone for good. `used` (epoch seconds): when
        somebody last relied on it, if that is not now. `backed` as in `note_backed`, `unbacked` as
        in `note_unbacked`.
        """
        digest = Digest.parse(metainfo.digest)
        sidecars = {METAINFO: metainfo.encode()} | ({KEPT: b""} if kept else {})
        sidecars |= {UNBACKED: b""} if unbacked else {}
        with self._lock(digest):
            # An upload in many chunks may have been written to for the last time long ago.
            now = round(self._clock() * 1e9)
            last = now if used is None else min(now, round(used * 1e9))
            os.utime(file, ns=(last, file.stat().st_mtime_ns if used is None else last))
            blob = self._store.adopt(file, digest, sidecars, durable=True)
            if backed:
                self.backing.note(digest, backed)
        with self._noting:
            self._written[digest] = _stamp(blob.path)
            if len(self._written) > _MAX_WRITTEN:
                del self._written[next(iter(self._written))]
        return blob

    def note_backed(self, digest: Digest, entries: Collection[str]) -> None:
        """Note that backends have the blob: ``<key of the backend>|<repository>`` each."""
        with self._lock(digest):
            if self._store.stat(digest) is not None:
                self.backing.note(digest, entries)

    def forget_backed(self, digest: Digest) -> None:
        """The opposite: a backend has lost it."""
        with self._lock(digest):
            if self._store.stat(digest) is not None:
                self.backing.forget(digest)

    def note_unbacked(self, digest: Digest) -> None:
        """Note that a repository without a backend has the blob; durable on return."""
        with self._lock(digest):
            if self._store.stat(digest) is not None:
                self.backing.note_unbacked(digest)

    def pinned_by(self, is_pinned: Callable[[Digest], bool]) -> None:
        """Never give up copies of which this says so, in whatever thread."""
        self._pinned = is_pinned

    def is_pinned(self, digest: Digest) -> bool:
        """Whether the copy must stay: a backend that is to have the blob has not got it yet."""
        return self._pinned(digest)

    def is_as_written(self, whole: Whole) -> bool:
        """Whether this process wrote the copy, from verified bytes, and nobody touched it since."""
        with self._noting:
            written = self._written.get(whole.blob.digest)
        return written is not None and written == _stamp(whole.blob.path)

    def is_sound(self, whole: Whole) -> bool:
        """Whether the copy is what it should be: one that was not written just now is read."""
        return self.is_as_written(whole) or self.recheck(whole.blob.digest)

    def is_kept(self, digest: Digest) -> bool:
        """Whether garbage collection leaves the blob alone. A damaged mark is a mark, too."""
        return self._store.is_marked(digest, KEPT)

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

    def copies(self, *, after: str = "") -> Iterator[Copy]:
        """All blobs that are here, ordered by digest, from `after` (its text) on.

        Those that come or go meanwhile may be missed, and those of which the disk says nothing.
        """
        for digest in self._store.digests(after=after):
            try:
                copy = self._copy(digest)
            except OSError as error:
                if not is_unreadable(error):
                    raise
                note_unreadable(digest, error)
                continue
            if copy is not None:
                yield copy

    def count(self) -> int:
        """How many blobs are here."""
        return sum(1 for _ in self._store.digests())

    def give_up(self, digest: Digest, cutoff: float) -> int | None:
        """Remove the copy unless it has to stay after all; the bytes freed, or None.

        `cutoff` in epoch seconds: a copy that was used since then stays.
        """
        with self._lock(digest):
            copy = self._copy(digest)
            if copy is None or stays(copy, cutoff) is not None:
                return None
            self._remove(digest)
        return copy.size

    def give_up_spare(self, digest: Digest, cutoff: float) -> int | None:
        """Remove a copy that all owners have, unless it has to stay; the bytes freed, or None.

        It stays while it is in use, when somebody relied on it since `cutoff` (epoch seconds), or
        while another host counts on it (`hold`). That it is kept or unbacked means: by its owners.
        """
        with self._lock(digest):
            copy = self._copy(digest)
            with self._noting:
                held = self._held.get(digest, 0.0) > time.monotonic()
            if copy is None or copy.in_use or copy.last_used >= cutoff or held:
                return None
            self._remove(digest)
        return copy.size

    def evict(self, digest: Digest) -> int | None:
        """Remove a copy to make room, if it would come back and nobody uses it; the bytes freed."""
        with self._lock(digest):
            copy = self._copy(digest)
            if copy is None or copy.in_use or not self.backing.may_go(digest):
                return None
            self._remove(digest)
        return copy.size

    def note_use(self, whole: Whole) -> None:
        """Somebody reads the copy: note it, but not for each one of many readers."""
        path = whole.blob.path
        with suppress(OSError):  # gone, or on a disk that can only be read: then it is read
            if self._clock() - path.stat().st_atime > _USED_EVERY:
                with self._lock(whole.blob.digest):
                    self._touch(whole.blob.digest, path, None)

    def _remove(self, digest: Digest) -> None:
        self._store.delete(digest)
        with self._noting:
            self._written.pop(digest, None)

    def _copy(self, digest: Digest) -> Copy | None:
        try:
            status = self._store.path(digest).stat()
        except FileNotFoundError:
            return None
        with self._noting:
            in_use = digest in self._in_use or self._pinned(digest)
        last_used = max(status.st_atime, status.st_mtime)
        return Copy(
            digest,
            status.st_size,
            last_used,
            self.is_kept(digest),
            in_use,
            self.backing.is_unbacked(digest),
        )

    def _lock(self, digest: Digest) -> threading.Lock:
        return self._locks[hash(digest) % _LOCKS]

    def _touch(self, digest: Digest, path: Path, used: float | None) -> None:
        # The time of modification stays: `is_as_written` goes by it.
        status = path.stat()
        last = self._clock() if used is None else min(used, self._clock())
        accessed = round(last * 1e9)
        if used is not None:
            accessed = max(accessed, status.st_atime_ns)
        os.utime(path, ns=(accessed, status.st_mtime_ns))
        if digest in self._quiet:
            self._quiet[digest] = accessed

    # -- damage ---------------------------------------------------------------------------------

    def on_damage(self, callback: Callable[[Digest], None]) -> None:
        """Call it, in whatever thread, for each copy that is set aside from now on."""
        self._on_damage = callback

    def damaged_copies(self) -> list[Digest]:
        """Blobs of which a damaged copy lies aside, and no good one has come since.

        What lies aside of those that have come is removed.
        """
        lacking = []
        for digest in self._store.digests(suffix=DAMAGED):
            if self.find(digest) is None:
                lacking.append(digest)
            else:
                self.discard_damaged(digest)
        return lacking

    def discard_damaged(self, digest: Digest) -> None:
        """Remove what lies aside."""
        for path in self._store.places(digest):
            damaged(path).unlink(missing_ok=True)

    def last_used_of_damaged(self, digest: Digest) -> float | None:
        """Epoch seconds: when somebody last relied on what lies aside now."""
        used = []
        for path in self._store.places(digest):
            with suppress(OSError):
                status = damaged(path).stat()
                used.append(max(status.st_atime, status.st_mtime))
        return max(used, default=None)

    def set_aside(self, digest: Digest) -> None:
        """The disk could not read the copy: put it out of every reader's way, if it still cannot.

        An error of a moment (a cable, a reset of the controller) is not worth the copy.
        """
        before = _inode(self._store.path(digest))
        with suppress(OSError):
            self.recheck(digest)
            return
        with self._lock(digest):
            path = self._store.path(digest)
            try:
                if _inode(path) != before:
                    return  # A good copy took its place while this one was read.
                path.rename(damaged(path))
            except FileNotFoundError:
                return
        log.error("set aside a copy that cannot be read", digest=str(digest))
        self._on_damage(digest)

    def put_back(self, digest: Digest) -> bool:
        """Put what lies aside in its place again if all of it can be read, and is right after all.

        For a blob that is nowhere else.
        """
        for path in self._store.places(digest):
            aside = damaged(path)
            try:
                with aside.open("rb", buffering=0) as file:
                    right = measure(file, digest.algorithm).digest == str(digest)
            except OSError:
                continue
            with self._lock(digest):
                if right and self._store.stat(digest) is None:
                    aside.rename(path)
                    return True
        return False

    def write_metainfo(self, metainfo: Metainfo) -> None:
        """Replace a metainfo that is not that of the copy."""
        digest = Digest.parse(metainfo.digest)
        with self._lock(digest):
            if self._store.stat(digest) is not None:
                self._store.write_sidecar(digest, METAINFO, metainfo.encode(), durable=True)

    @contextmanager
    def read_quietly(self, digest: Digest) -> Iterator[tuple[int, Metainfo | None]]:
        """The open copy and its metainfo, if that can be read; reading does not make it younger.

        Raises `FileNotFoundError`. One reader at a time may read a blob so.
        """
        path = self._store.path(digest)
        flags = os.O_RDONLY | os.O_CLOEXEC
        before: int | None = None
        try:
            file = os.open(path, flags | os.O_NOATIME)
        except PermissionError:
            # Only a file's owner may read it without a trace.
            with self._lock(digest):
                before = path.stat().st_atime_ns
                self._quiet[digest] = None
            file = os.open(path, flags)
        try:
            yield file, self._metainfo(digest)
        finally:
            if before is not None:
                with self._lock(digest):
                    relied = self._quiet.pop(digest, None)
                    status = os.fstat(file)
                    with suppress(OSError):
                        os.utime(file, ns=(relied or before, status.st_mtime_ns))
            os.close(file)

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
                with self._lock(digest):
                    replaced = os.fstat(file.fileno()).st_ino != path.stat().st_ino
                    if not replaced:
                        path.rename(damaged(path))
        except FileNotFoundError:
            return None
        if replaced:
            return self._metainfo(digest)  # A good copy took its place while this one was read.
        log.error("set aside a damaged copy", digest=str(digest), found=metainfo.digest)
        self._on_damage(digest)
        return None

    def _set_aside(self, digest: Digest, metainfo: Metainfo) -> StoredBlob | None:
        with self._lock(digest):
            blob = self._store.stat(digest)
            if blob is None or blob.size == metainfo.size:
                return blob  # A good copy has taken the damaged one's place since.
            blob.path.rename(damaged(blob.path))
        log.error(
            "set aside a damaged copy", digest=str(digest), size=blob.size, expected=metainfo.size
        )
        self._on_damage(digest)
        return None


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when somebody writes to the file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def damaged(path: Path) -> Path:
    """Where a damaged copy is kept, out of every reader's way."""
    return path.with_name(path.name + DAMAGED)
