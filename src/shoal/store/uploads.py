# SPDX-License-Identifier: Apache-2.0
"""Upload sessions: files that grow over several requests and survive a restart. It blocks."""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shoal.model.digest import ALGORITHMS
from shoal.model.errors import BlobUploadUnknown, UploadConflict
from shoal.store.volumes import Volumes
from shoal.store.writer import BlobWriter

_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FILE = re.compile(rf"([0-9a-f]{{32}})\.(?:{'|'.join(ALGORITHMS)})", re.ASCII)


class UploadSession:
    """One upload: its id, and the writer of its file."""

    def __init__(self, session_id: str, writer: BlobWriter) -> None:
        self.id = session_id
        self.writer = writer
        self._lock = threading.Lock()
        self._ended = False

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self.writer.size

    @property
    def path(self) -> Path:
        """The session's file."""
        return self.writer.path

    @property
    def busy(self) -> bool:
        """Whether a request is writing now."""
        return self._lock.locked()

    def end(self) -> None:
        """Let nobody write any more; a request that is writing still finishes."""
        self._ended = True

    def close(self) -> None:
        """Close the file; a request that is writing does so itself, when it is done."""
        if self._lock.acquire(blocking=False):
            try:
                self.writer.close()
            finally:
                self._lock.release()

    @contextmanager
    def exclusive(self) -> Iterator[BlobWriter]:
        """Give the writer, to one request at a time; the second gets `UploadConflict` at once.

        Raises `BlobUploadUnknown` when the session ended since it was opened. The file is closed
        at the end, so that idle sessions hold no descriptors.
        """
        if not self._lock.acquire(blocking=False):
            raise UploadConflict(
                f"another request is writing to upload {self.id}; try when it is done"
            )
        try:
            if self._ended:
                raise BlobUploadUnknown(f"upload {self.id} has ended")
            yield self.writer
        finally:
            self.writer.close()
            self._lock.release()


class UploadSessions:
    """The sessions of one process, each a file ``root/<id>.<algorithm>`` on one of the volumes.

    May be used from any thread.
    """

    def __init__(self, root: Path | Volumes) -> None:
        self._volumes = root if isinstance(root, Volumes) else Volumes([root])
        for folder in self._volumes.paths:
            folder.mkdir(parents=True, exist_ok=True)
        self._sessions: dict[str, UploadSession] = {}
        self._lock = threading.Lock()

    def start(self, algorithm: str = "sha256") -> str:
        """Begin a session whose bytes are hashed with `algorithm` as they come.

        Returns its id, which nobody can guess. Raises `ValueError` for what is no algorithm.
        """
        if algorithm not in ALGORITHMS:
            raise ValueError(f"{algorithm[:40]!r} is none of {', '.join(ALGORITHMS)}")
        session_id = uuid.uuid4().hex
        path = self._volumes.choose(session_id) / f"{session_id}.{algorithm}"
        with self._volumes.watching(path):
            writer = BlobWriter(path, algorithm)
            writer.close()
        with self._lock:
            self._sessions[session_id] = UploadSession(session_id, writer)
        return session_id

    def known(self, session_id: str) -> UploadSession | None:
        """The session if this process has it in memory already. Does not block."""
        with self._lock:
            return self._sessions.get(session_id)

    def open(self, session_id: str) -> UploadSession | None:
        """The session, or None when there is none of that id.

        The first time after a restart of the process its file is read and hashed again.
        """
        if _ID.fullmatch(session_id) is None:
            return None
        if (session := self.known(session_id)) is not None:
            return session
        writer = self._resume(session_id)
        if writer is None:
            return None
        with self._lock:
            # Of two that read the file at the same time the first one's session is everybody's.
            return self._sessions.setdefault(session_id, UploadSession(session_id, writer))

    def discard(self, session_id: str) -> bool:
        """End a session and remove its file, if it is still here; whether there was a session."""
        if _ID.fullmatch(session_id) is None:
            return False
        with self._lock:
            session = self._sessions.pop(session_id, None)
        if session is not None:
            session.end()
        paths = self._paths(session_id) if session is None else [session.path]
        found = session is not None
        try:
            for path in paths:
                with suppress(FileNotFoundError):
                    path.unlink()
                    found = True
        finally:
            if session is not None:
                session.close()  # After the name is gone, so that nothing opens the file again.
        return found

    def expire(self, now: float, ttl: float) -> list[str]:
        """Discard sessions to which nobody wrote for `ttl` seconds; `now` is seconds of the epoch.

        Returns their ids. One that is being written to stays.
        """
        expired = []
        for entry in self._files():
            name = _FILE.fullmatch(entry.name)
            with suppress(FileNotFoundError):
                if name is None or now - entry.stat().st_mtime < ttl:
                    continue
                session = self.known(name[1])
                if session is not None and session.busy:
                    continue
                self.discard(name[1])
                expired.append(name[1])
        return expired

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for folder in self._volumes.paths:
            with self._volumes.watching(folder / "any"):
                yield from os.scandir(folder)

    def _resume(self, session_id: str) -> BlobWriter | None:
        for path in self._paths(session_id):
            with suppress(FileNotFoundError):
                return BlobWriter.resume(path, path.suffix.removeprefix("."))
        return None

    def _paths(self, session_id: str) -> list[Path]:
        """Where its file may be: the algorithm is not in the id."""
        names = [f"{session_id}.{algorithm}" for algorithm in ALGORITHMS]
        return [folder / name for folder in self._volumes.paths for name in names]
