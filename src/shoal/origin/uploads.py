# SPDX-License-Identifier: Apache-2.0
"""Chunked uploads to an origin: a session grows over several requests, then goes to the owners."""

from __future__ import annotations

from collections.abc import AsyncIterator

from shoal.model.digest import Digest
from shoal.model.errors import BlobUploadUnknown, UploadOutOfOrder
from shoal.origin.client import UploadResult
from shoal.origin.receiving import Receiver
from shoal.origin.service import OriginService
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSession, UploadSessions


class ChunkedUploads:
    """The upload sessions of this origin. They survive its restart."""

    def __init__(
        self, sessions: UploadSessions, receiver: Receiver, service: OriginService
    ) -> None:
        self._sessions = sessions
        self._receiver = receiver
        self._service = service

    async def start(self, namespace: str) -> str:
        """Begin a session; returns its id. Raises `Denied`, before anything was sent in vain."""
        self._service.check_push(namespace)
        return await in_thread(self._sessions.start)

    async def append(
        self, session_id: str, digest: Digest, source: AsyncIterator[bytes], start: int | None
    ) -> int:
        """Append a chunk, which must begin at byte `start` if that is given; the size after it.

        Raises `BlobUploadUnknown`, `UploadConflict`, `UploadOutOfOrder` and what `Receiver.take`
        raises; what came before an error stays.
        """
        session = await self._open(session_id)
        with session.exclusive() as writer:
            if start is not None and start != writer.size:
                raise UploadOutOfOrder(
                    f"upload {session_id} goes on at byte {writer.size}, this chunk is at {start}",
                    headers={"Range": f"0-{max(0, writer.size - 1)}"},
                )
            await self._receiver.take(digest, source, writer)
            return writer.size

    async def finish(
        self,
        session_id: str,
        digest: Digest,
        source: AsyncIterator[bytes],
        budget: float,
        *,
        namespace: str,
        through: bool = False,
    ) -> UploadResult:
        """Append the last chunk (it may be empty) and give the blob to its owners.

        `budget`: seconds for the latter, besides those that the transfer takes; `through` as in
        `OriginService.distribute`. Raises `Denied` and what `append` raises; then, with the session
        gone, `DigestInvalid` and what `OriginService.distribute` raises.
        """
        self._service.check_push(namespace)
        session = await self._open(session_id)
        with session.exclusive() as writer:
            await self._receiver.take(digest, source, writer)
            try:
                received = await self._receiver.detach(digest, writer)
            finally:
                await in_thread(self._sessions.discard, session_id)
        return await self._service.distribute(
            received, budget, namespace=namespace, through=through
        )

    async def expire(self, now: float, ttl: float) -> list[str]:
        """Forget sessions that nobody continued for `ttl` seconds; `now` in epoch seconds."""
        return await in_thread(self._sessions.expire, now, ttl)

    async def _open(self, session_id: str) -> UploadSession:
        session = await in_thread(self._sessions.open, session_id)
        if session is None:
            raise BlobUploadUnknown(
                f"there is no upload {session_id[:64]!r} on this origin: it was finished, has "
                "expired, or was started on another one",
                detail={"upload": session_id[:64]},
            )
        return session
