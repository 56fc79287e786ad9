# SPDX-License-Identifier: Apache-2.0
"""What an origin does. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import ApiError, BadRequest, BlobUnknown
from shoal.origin.client import OriginCluster, UploadResult
from shoal.origin.local import LocalBlobs, Whole
from shoal.origin.receiving import Received, Receiver, refusing_when_full
from shoal.origin.remote_blob import RemoteBlob
from shoal.store.threads import in_thread, open_file, submit
from shoal.swarm.metainfo import Metainfo
from shoal.web.bodies import FileBlob
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded

log = structlog.get_logger()


class OriginService:
    """One member of the ring: its own copies, and the way to those of the others."""

    def __init__(
        self, name: str, local: LocalBlobs, receiver: Receiver, cluster: OriginCluster
    ) -> None:
        """`name` is what the list of members calls this origin (``host:port``)."""
        self.name = name
        self._local = local
        self._receiver = receiver
        self._cluster = cluster
        self._ending: set[asyncio.Future[None]] = set()

    # -- own copies -----------------------------------------------------------------------------

    async def store(
        self,
        digest: Digest,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        kept: bool = False,
    ) -> bool:
        """Make a copy on this host alone, from the whole blob; False when it was here already.

        On return the copy is verified and on stable storage. `kept`: garbage collection leaves it
        alone for good. On any error nothing is kept; raises what `Receiver.receive` raises.
        """
        with self._local.in_use(digest):
            whole = await in_thread(self._local.rely, digest, kept=kept)
            if whole is not None and size in (None, whole.metainfo.size):
                await self._receiver.skip(source)
                return False
            received = await self._receiver.receive(digest, source, size)
            try:
                await self._keep(received, kept=kept)
            except BaseException:
                await asyncio.shield(submit(received.discard))
                raise
        log.info("blob stored", digest=str(digest), size=received.size)
        return True

    async def sizes(
        self, digests: Iterable[Digest], *, keep: bool = False, kept: bool = False
    ) -> dict[Digest, int]:
        """Sizes of those blobs that are on this host.

        `keep`: the caller relies on them, their grace time begins anew; `kept`: garbage collection
        leaves them alone for good.
        """
        return await in_thread(self._local.sizes, digests, rely=keep, kept=kept)

    async def metainfo(self, digest: Digest) -> Metainfo:
        """The pieces of a blob on this host; raises `BlobUnknown`."""
        whole = await in_thread(self._local.find, digest)
        if whole is None:
            raise self._unknown(digest)
        return whole.metainfo

    async def open_own(self, digest: Digest) -> FileBlob:
        """The copy on this host; raises `BlobUnknown`."""
        blob = await in_thread(self._open, digest)
        if blob is None:
            raise self._unknown(digest)
        return blob

    def _open(self, digest: Digest) -> FileBlob | None:
        whole = self._local.find(digest)
        if whole is None:
            return None
        try:
            file = os.open(whole.blob.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return FileBlob(file, whole.metainfo.size)

    async def _keep(self, received: Received, *, kept: bool) -> None:
        """Move a received blob into place; when cancelled, wait until that has come to its end."""
        with refusing_when_full(Digest.parse(received.metainfo.digest)):
            keeping = submit(self._local.keep, received.file, received.metainfo, kept=kept)
            try:
                await asyncio.wait([keeping])
            except asyncio.CancelledError:
                await asyncio.wait([keeping])
                raise
            keeping.result()

    def _unknown(self, digest: Digest) -> BlobUnknown:
        return BlobUnknown(f"{digest} is not on {self.name}", detail={"digest": str(digest)})

    # -- the ring -------------------------------------------------------------------------------

    def owners(self, digest: Digest) -> list[str]:
        """The hosts that should have the blob, best first."""
        return self._cluster.owners(digest)

    async def open(self, digest: Digest, deadline: Deadline) -> FileBlob | RemoteBlob:
        """The blob from wherever it is, this host first.

        Raises `BlobUnknown` when all members answered that it is not there, `CallFailed` when some
        could not be asked.
        """
        own = await in_thread(self._open, digest)
        if own is not None:
            return own
        try:
            return await self._cluster.open(digest, deadline=deadline, besides=self.name)
        except NotFound as error:
            raise BlobUnknown(error.detail, detail={"digest": str(digest)}) from error

    async def upload(
        self, digest: Digest, source: AsyncIterator[bytes], size: int | None, budget: float
    ) -> UploadResult:
        """Take a whole blob and give it to its owners, to stay; returns at the write quorum.

        `budget`: seconds from when the blob is here, besides those that its transfer takes. Raises
        what `Receiver.receive` raises, and `QuorumFailed`.
        """
        received = await self._receiver.receive(digest, source, size)
        return await self.distribute(received, budget)

    async def distribute(self, received: Received, budget: float) -> UploadResult:
        """Give a received blob to its owners; this host keeps the file if it is one of them.

        Garbage collection leaves it alone for good: no repository says how long it is needed.
        `budget`: seconds, besides those that the transfer takes. Returns at the write quorum;
        raises `QuorumFailed`. The temp file is gone in the end.
        """
        digest = Digest.parse(received.metainfo.digest)
        file = await in_thread(os.open, received.file, os.O_RDONLY | os.O_CLOEXEC)
        deadline = Deadline.after(budget).with_transfer(received.size)

        async def copy(host: str) -> None:
            if host != self.name:
                await self._cluster.send(
                    host, digest, file, received.size, deadline=deadline, kept=True
                )
                return
            try:
                await self._keep(received, kept=True)
            except (ApiError, OSError) as error:
                raise Overloaded("PUT", f"{host}/internal/blobs/{digest}", str(error)) from error

        def finished() -> None:
            os.close(file)
            self._ending.add(ending := submit(received.discard))
            ending.add_done_callback(self._ending.discard)

        result = await self._cluster.place(digest, copy, deadline=deadline, finished=finished)
        log.info("blob placed", digest=str(digest), size=received.size, hosts=result.hosts)
        return result

    async def replicate(
        self, digest: Digest, hosts: Sequence[str], deadline: Deadline
    ) -> tuple[list[str], dict[str, str]]:
        """Copy a blob of this host to other members: those that have it now, and why others do not.

        Raises `BlobUnknown` when it is not here, `BadRequest` for a host that is not a member.
        """
        strangers = sorted(set(hosts) - set(self._cluster.members))
        if strangers:
            raise BadRequest(f"not members of the ring: {', '.join(strangers)}")
        with self._local.in_use(digest):
            whole = await in_thread(self._local.rely, digest)
            if whole is None:
                raise self._unknown(digest)
            targets = [host for host in dict.fromkeys(hosts) if host != self.name]
            outcomes = await self._send_own(whole, targets, deadline)
        copied, failed = [], {}
        for host, outcome in zip(targets, outcomes, strict=True):
            match outcome:
                case None:
                    copied.append(host)
                case CallFailed():
                    failed[host] = outcome.detail
                case _:
                    raise outcome
        log.info("blob replicated", digest=str(digest), copied=copied, failed=failed)
        return copied, failed

    async def _send_own(
        self, whole: Whole, targets: Sequence[str], deadline: Deadline
    ) -> list[BaseException | None]:
        """Send this host's copy to the targets; per target None, or what went wrong."""
        digest, size = whole.blob.digest, whole.metainfo.size
        kept = await in_thread(self._local.is_kept, digest)
        try:
            file = await open_file(whole.blob.path)
        except FileNotFoundError as error:
            raise self._unknown(digest) from error
        late = deadline.with_transfer(size)
        try:
            return await asyncio.gather(
                *(
                    self._cluster.send(host, digest, file, size, deadline=late, kept=kept)
                    for host in targets
                ),
                return_exceptions=True,
            )
        finally:
            await in_thread(os.close, file)
