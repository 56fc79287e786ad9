# SPDX-License-Identifier: Apache-2.0
"""What the proxy does: blobs to the origins, tags to the build-index, and pulls from both."""

from __future__ import annotations

import asyncio

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUnknown,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestInvalid,
    ManifestUnknown,
    Unavailable,
    UploadConflict,
)
from shoal.model.manifest import MAX_MANIFEST_BYTES, InvalidManifest, Manifest, parse_manifest
from shoal.proxy.ports import Origins, TagIndex
from shoal.proxy.uploads import Uploads
from shoal.registry.ports import Chunk
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSession
from shoal.web.bodies import Blob
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound

log = structlog.get_logger()


class ProxyService:
    """Implements both ports of the registry API; keeps nothing but uploads under way."""

    def __init__(
        self,
        *,
        origins: Origins,
        index: TagIndex,
        uploads: Uploads,
        write_quorum: int,
    ) -> None:
        self._origins = origins
        self._index = index
        self._uploads = uploads
        self._write_quorum = write_quorum
        self._finishing: dict[str, asyncio.Event] = {}

    # -- pulls --------------------------------------------------------------------------------

    async def resolve(self, repository: str, tag: str, deadline: Deadline) -> Digest:
        digest = await self._index.get_tag(repository, tag, deadline=deadline)
        if digest is None:
            raise ManifestUnknown(f"no tag {tag} in {repository}")
        return digest

    async def manifest(self, repository: str, digest: Digest, deadline: Deadline) -> bytes:
        try:
            return await self._origins.read(digest, deadline=deadline, limit=MAX_MANIFEST_BYTES)
        except NotFound as error:
            raise ManifestUnknown(f"no manifest {digest} in {repository}") from error
        except CallFailed:
            size = await self._origins.stat(digest, deadline=deadline)
            if size is None or size <= MAX_MANIFEST_BYTES:
                raise
            raise ManifestUnknown(f"{digest} is a blob of {size} bytes, no manifest") from None

    async def stat_blob(self, repository: str, digest: Digest, deadline: Deadline) -> int:
        size = await self._origins.stat(digest, deadline=deadline)
        if size is None:
            raise BlobUnknown(f"no blob {digest} in {repository}: its owners were asked")
        return size

    async def open_blob(self, repository: str, digest: Digest, deadline: Deadline) -> Blob:
        try:
            return await self._origins.open(digest, deadline=deadline)
        except NotFound as error:
            raise BlobUnknown(f"no blob {digest} in {repository}: its owners were asked") from error

    async def tags(self, repository: str, n: int, last: str, deadline: Deadline) -> list[str]:
        return await self._index.tags(repository, n, last, deadline=deadline)

    async def repositories(self, n: int, last: str, deadline: Deadline) -> list[str]:
        return await self._index.repositories(n, last, deadline=deadline)

    # -- pushes -------------------------------------------------------------------------------

    async def start_upload(self, repository: str) -> str:
        return await self._uploads.start(repository)

    async def upload_size(self, repository: str, upload: str) -> int:
        return (await self._uploads.get(repository, upload)).size

    async def append(self, repository: str, upload: str, chunk: Chunk) -> int:
        async with self._uploads.exclusive(repository, upload) as session:
            return await self._uploads.append(session, chunk)

    async def finish(
        self, repository: str, upload: str, digest: Digest, chunk: Chunk | None, deadline: Deadline
    ) -> None:
        budget = deadline.remaining()
        await self._end_of_other_finish(upload, deadline)
        try:
            async with self._uploads.exclusive(repository, upload) as session:
                finished = self._finishing[upload] = asyncio.Event()
                try:
                    if chunk is not None:
                        await self._uploads.append(session, chunk)
                    await self._uploads.verify(session, digest)
                    # The time in which the client sent its chunk is not the time of storing it.
                    await self._store(session, digest, Deadline.after(budget))
                    await self._uploads.discard(session)
                finally:
                    del self._finishing[upload]
                    finished.set()
        except BlobUploadUnknown:
            # The client may be repeating a PUT whose answer it never saw.
            if not await self.mount(repository, digest, deadline):
                raise

    async def cancel(self, repository: str, upload: str) -> None:
        async with self._uploads.exclusive(repository, upload) as session:
            await self._uploads.discard(session)

    async def mount(self, repository: str, digest: Digest, deadline: Deadline) -> bool:
        """Whether the write quorum has the blob. Blobs are shared by all repositories."""
        presence = await self._origins.stat_many([digest], deadline=deadline)
        copies = len(presence.copies.get(digest, ()))
        log.debug("mount", repository=repository, digest=str(digest), copies=copies)
        return copies >= self._write_quorum

    async def put_manifest(
        self,
        repository: str,
        reference: Digest | str,
        body: bytes,
        content_type: str | None,
        deadline: Deadline,
    ) -> Digest:
        manifest, digest = await in_thread(_read_manifest, reference, body, content_type)
        await self._store_manifest(repository, digest, body, deadline)
        kind = manifest.media_type
        if isinstance(reference, str):
            await self._index.put_tag(repository, reference, digest, body, kind, deadline=deadline)
        else:
            await self._index.check(repository, digest, body, kind, deadline=deadline)
        return digest

    async def _store_manifest(
        self, repository: str, digest: Digest, body: bytes, deadline: Deadline
    ) -> None:
        session = await self._uploads.get(repository, await self._uploads.start(repository))
        try:
            await in_thread(session.writer.append, [body])
            await self._store(session, digest, deadline)
        finally:
            await self._uploads.discard(session)

    async def _store(self, session: UploadSession, digest: Digest, deadline: Deadline) -> None:
        """Return when the write quorum has the content; raise `Unavailable` naming who failed."""
        size = session.size
        try:
            await self._origins.upload(
                digest, session.path, size, deadline=deadline.with_transfer(size)
            )
        except CallFailed as error:
            raise Unavailable(
                f"{digest} ({size} bytes) is not stored safely: {error}; send the request again",
                detail={"digest": str(digest), "origins": str(error)},
            ) from error

    async def _end_of_other_finish(self, upload: str, deadline: Deadline) -> None:
        """Wait while an earlier request, whose client has gone, finishes the same upload."""
        while (earlier := self._finishing.get(upload)) is not None:
            try:
                async with asyncio.timeout(deadline.remaining()):
                    await earlier.wait()
            except TimeoutError as error:
                raise UploadConflict(
                    f"another request is still finishing upload {upload}; send the request again"
                ) from error


def _read_manifest(
    reference: Digest | str, body: bytes, content_type: str | None
) -> tuple[Manifest, Digest]:
    """Parse and hash a manifest that is pushed. Blocks: to be called in a thread."""
    algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
    digest = Digest.of(body, algorithm)
    if isinstance(reference, Digest) and digest != reference:
        raise DigestInvalid(
            f"the {len(body)} bytes received have the digest {digest}, not {reference}",
            detail={"expected": str(reference), "received": str(digest)},
        )
    try:
        return parse_manifest(body, content_type), digest
    except InvalidManifest as error:
        raise ManifestInvalid(str(error), detail={"digest": str(digest)}) from error
