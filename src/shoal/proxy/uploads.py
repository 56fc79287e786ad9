# SPDX-License-Identifier: Apache-2.0
"""Uploads on their way through the proxy: one file each, from the first byte to the quorum."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUploadUnknown,
    DigestInvalid,
    InsufficientStorage,
    SizeInvalid,
    TooLarge,
    Unavailable,
    UploadOutOfOrder,
)
from shoal.proxy.upload_ids import UploadId, name_hash
from shoal.registry.ports import Chunk, ClientStalled
from shoal.store.full import is_full
from shoal.store.ingest import Stalled, ingest
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSession, UploadSessions

EXPIRE_INTERVAL = 600.0
"""Seconds between two looks for expired sessions, at most."""

log = structlog.get_logger()


class Uploads:
    """The upload sessions of one proxy, each bound to the repository it was opened in."""

    def __init__(self, sessions: UploadSessions, *, idle_timeout: float, name: str) -> None:
        """`name` is how the other proxies call this one, ``host:port``."""
        self._sessions = sessions
        self._idle_timeout = idle_timeout
        self._name = name

    async def start(self, repository: str, algorithm: str = "sha256") -> str:
        """Open a session whose bytes are hashed with `algorithm`, and return its id."""
        session = await in_thread(self._sessions.start, algorithm)
        return str(UploadId.of(session, repository, self._name))

    async def find(self, repository: str, upload: str) -> UploadSession | None:
        """Return the session, or None when this proxy has none of this id in this repository."""
        found = UploadId.parse(upload)
        if found is None or found.owner != name_hash(self._name) or not found.is_of(repository):
            return None
        known = self._sessions.known(found.session)
        return known or await in_thread(self._sessions.open, found.session)

    async def get(self, repository: str, upload: str) -> UploadSession:
        """Return the session; raise `BlobUploadUnknown`."""
        session = await self.find(repository, upload)
        if session is None:
            raise unknown(repository, upload)
        return session

    @asynccontextmanager
    async def exclusive(self, repository: str, upload: str) -> AsyncIterator[UploadSession]:
        """Hold a session for one request; raise `BlobUploadUnknown` or `UploadConflict`."""
        session = await self.get(repository, upload)
        with session.exclusive():
            # The one that held it before may have finished or dropped it.
            if await self.find(repository, upload) is not session:
                raise unknown(repository, upload)
            yield session

    async def append(self, session: UploadSession, chunk: Chunk) -> int:
        """Append a chunk to a session that the caller holds; return the session's size."""
        before = session.size
        if chunk.offset is not None and chunk.offset != before:
            raise UploadOutOfOrder(
                f"the chunk begins at byte {chunk.offset}, but {before} bytes were received: "
                f"go on from there",
                detail={"offset": chunk.offset, "received": before},
            )
        try:
            received = await ingest(
                chunk.body, session.writer, limit=chunk.size, idle_timeout=self._idle_timeout
            )
        except Stalled as error:
            raise ClientStalled(session.size - before, self._idle_timeout) from error
        except TooLarge as error:
            raise SizeInvalid(f"the chunk has more than the {chunk.size} bytes it named") from error
        except OSError as error:
            # What lies on a full disk keeps it full.
            await self.discard(session)
            unwritten = InsufficientStorage if is_full(error) else Unavailable
            raise unwritten(
                f"cannot write upload {session.id} on this proxy: {error.strerror or error}; "
                "nothing of it was kept: start the upload again",
            ) from error
        if chunk.size is not None and received != chunk.size:
            raise SizeInvalid(f"the chunk was to have {chunk.size} bytes, and {received} came")
        return session.size

    async def verify(self, session: UploadSession, digest: Digest) -> None:
        """Check the content against its digest; on a mismatch drop it and raise `DigestInvalid`."""
        if digest.algorithm == session.writer.algorithm:
            found = session.writer.digest()  # hashed while it came
        else:
            found = await in_thread(session.writer.digest, digest.algorithm)
        if found != digest:
            size = session.size
            await self.discard(session)
            raise DigestInvalid(
                f"the {size} bytes received have the digest {found}, not {digest}; "
                "nothing was kept: start the upload again",
                detail={"expected": str(digest), "received": str(found), "size": size},
            )

    async def expire(self, ttl: float) -> None:
        """From now on drop sessions to which nothing was written for `ttl` seconds."""
        while True:
            await asyncio.sleep(min(ttl / 4, EXPIRE_INTERVAL))
            try:
                expired = await in_thread(self._sessions.expire, time.time(), ttl)
            except OSError as error:
                log.warning("uploads cannot be expired", error=str(error))
            else:
                for session in expired:
                    log.info("upload expired", upload=session, ttl_s=ttl)

    async def discard(self, session: UploadSession) -> None:
        """Drop the session and its file."""
        await in_thread(self._sessions.discard, session.id)


def unknown(repository: str, upload: str) -> BlobUploadUnknown:
    """Say that there is no such session."""
    return BlobUploadUnknown(
        f"no upload {upload[:80]!r} in {repository}: it was finished, cancelled, has expired, "
        "or belongs to another repository, or to a proxy that is none of this one's neighbours; "
        "start the upload again"
    )
