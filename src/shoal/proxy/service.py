# SPDX-License-Identifier: Apache-2.0
"""What the proxy does: content to the origins, what belongs to whom to the build-index, and back.

The origins hold content by its digest, whoever it belongs to; the build-index knows which blobs and
manifests a repository has. What a repository does not have is answered as what nobody has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUnknown,
    BlobUploadUnknown,
    DigestInvalid,
    InsufficientStorage,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    Unavailable,
    UploadConflict,
)
from shoal.model.manifest import (
    MAX_MANIFEST_BYTES,
    FoundManifest,
    IndexChildren,
    InvalidManifest,
    Manifest,
    Referrer,
    parse_manifest,
)
from shoal.proxy.config import PushMode, PushModes
from shoal.proxy.custody import Custody, NoCustody
from shoal.proxy.gate import PushGate, refusal
from shoal.proxy.neighbours import Neighbours
from shoal.proxy.ports import Index, Origins
from shoal.proxy.uploads import Uploads
from shoal.registry.membership import for_members
from shoal.registry.ports import Chunk, StoredManifest
from shoal.store.memory import MemoryCache
from shoal.store.threads import in_thread
from shoal.store.uploads import UploadSession
from shoal.web.bodies import Blob
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound

RETRY_AFTER = 5
"""Seconds after which a client should repeat a PUT that waited for deliveries in vain."""

log = structlog.get_logger()


class ProxyService:
    """Implements both ports of the registry API.

    Keeps nothing but uploads under way, what it has in custody, and manifests in memory. Blobs in
    custody are answered from there, so that a client that pushed one sees it at once.
    """

    def __init__(
        self,
        *,
        origins: Origins,
        index: Index,
        uploads: Uploads,
        write_quorum: int,
        modes: PushModes | None = None,
        custody: Custody | None = None,
        neighbours: Neighbours | None = None,
        tag_time: float = 0.0,
        manifest_cache: int = 0,
    ) -> None:
        """`tag_time` (seconds) of a manifest's PUT is kept from waiting for deliveries.

        `manifest_cache` is in bytes.
        """
        self._origins = origins
        self._index = index
        self._uploads = uploads
        self._write_quorum = write_quorum
        self._modes = modes or PushModes()
        self._custody: Custody = custody or NoCustody()
        self._neighbours = neighbours
        self._tag_time = tag_time
        self._manifests = MemoryCache(manifest_cache)
        self._gate = PushGate(origins)
        self._finishing: dict[str, asyncio.Event] = {}

    # -- pulls --------------------------------------------------------------------------------

    async def find_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        found = await self._index.find_manifest(repository, reference, deadline=deadline)
        if found is None:
            raise _no_manifest(repository, reference)
        return found

    async def stat_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        """What the records say, and a backend that answers soon.

        Clients ask for the tag that they are about to push, and give up when it cannot be told
        whether it is there. A client that wants the manifest gets it, and learns the truth then.
        """
        found = await self._index.find_manifest(repository, reference, deadline=deadline, rely=True)
        if found is None:
            raise _no_manifest(repository, reference)
        return found

    async def manifest(self, repository: str, found: FoundManifest, deadline: Deadline) -> bytes:
        body = self._manifests.get(found.digest)
        if body is None:
            try:
                body = await self._origins.read(
                    found.digest,
                    deadline=deadline,
                    limit=MAX_MANIFEST_BYTES,
                    namespace=repository,
                )
            except NotFound as error:
                raise _no_manifest(repository, found.digest) from error
            self._manifests.keep(found.digest, body)
        return body

    async def stat_blob(self, repository: str, digest: Digest, deadline: Deadline) -> int:
        """Return the blob's size; for some time after that nothing of it is collected as garbage.

        Clients ask before they leave a blob out of a push.
        """
        member = asyncio.ensure_future(
            self._index.has_blob(repository, digest, deadline=deadline, rely=True)
        )
        size = await for_members(member, self._size(digest, deadline))
        if size is None and await member:
            # Only then: most of what is asked for is new, and backends are far.
            size = await self._origins.stat(digest, deadline=deadline, namespace=repository)
        if size is None:
            raise _no_blob(repository, digest)
        return size

    async def _size(self, digest: Digest, deadline: Deadline) -> int | None:
        size = await self._custody.size(digest)
        if size is None:
            size = await self._origins.stat(digest, deadline=deadline, keep=True)
        return size

    async def open_blob(self, repository: str, digest: Digest, deadline: Deadline) -> Blob:
        if not await self._index.has_blob(repository, digest, deadline=deadline):
            raise _no_blob(repository, digest)
        if (held := await self._custody.open(digest)) is not None:
            return held
        try:
            return await self._origins.open(digest, deadline=deadline, namespace=repository)
        except NotFound as error:
            raise _no_blob(repository, digest) from error

    async def tags(self, repository: str, n: int, last: str, deadline: Deadline) -> list[str]:
        return await self._index.tags(repository, n, last, deadline=deadline)

    async def repositories(self, n: int, last: str, deadline: Deadline) -> list[str]:
        return await self._index.repositories(n, last, deadline=deadline)

    async def referrers(  # noqa: PLR0917 -- as the port has them
        self,
        repository: str,
        subject: Digest,
        artifact_type: str | None,
        n: int,
        last: str,
        deadline: Deadline,
    ) -> list[Referrer]:
        return await self._index.referrers(
            repository, subject, artifact_type=artifact_type, n=n, last=last, deadline=deadline
        )

    # -- pushes -------------------------------------------------------------------------------

    async def start_upload(self, repository: str, algorithm: str = "sha256") -> str:
        await self._gate.check(repository)
        return await self._uploads.start(repository, algorithm)

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
                    # The time in which the client sent its chunk is not that of storing it.
                    await self._take_in(session, digest, repository, Deadline.after(budget))
                    await self._uploads.discard(session)
                finally:
                    del self._finishing[upload]
                    finished.set()
        except BlobUploadUnknown:
            # The client may be repeating a PUT whose answer it never saw.
            if not await self._has_safely(repository, digest, deadline):
                raise

    async def cancel(self, repository: str, upload: str) -> None:
        async with self._uploads.exclusive(repository, upload) as session:
            await self._uploads.discard(session)

    async def mount(
        self, repository: str, digest: Digest, source: str | None, deadline: Deadline
    ) -> bool:
        """Link a blob of `source` (None: of any repository), if it is as safe as a push makes it.

        A link without that is of no consequence: the client is told to send the blob.
        """
        linked = await self._index.mount_blob(repository, digest, source, deadline=deadline)
        return linked and await self._is_safe(repository, digest, deadline)

    async def put_manifest(
        self,
        repository: str,
        reference: Digest | str,
        body: bytes,
        content_type: str | None,
        deadline: Deadline,
        *,
        tags: Sequence[str] = (),
        index_children: IndexChildren | None = None,
    ) -> StoredManifest:
        manifest, digest = await in_thread(_read_manifest, reference, body, content_type)
        await_delivery = self._modes.of(repository).await_delivery
        silent = await self._deliver(manifest, deadline) if await_delivery else []
        await self._store_manifest(repository, digest, body, deadline)
        self._manifests.keep(digest, body)
        try:
            await self._index.put_manifest(
                repository,
                digest,
                body if await_delivery else None,
                manifest.media_type,
                tags=[reference] if isinstance(reference, str) else tags,
                deadline=deadline,
                index_children=index_children,
            )
        except ManifestBlobUnknown as error:
            if not silent:
                raise
            raise Unavailable(
                f"{error.message}; they may wait at a proxy that could not be asked: "
                f"{'; '.join(silent)}; send the request again",
                detail=error.detail,
                retry_after=RETRY_AFTER,
            ) from error
        subject = None if manifest.subject is None else manifest.subject.digest
        return StoredManifest(digest, subject, tuple(tags), manifest.warnings())

    async def delete_tag(self, repository: str, tag: str, deadline: Deadline) -> None:
        if not await self._index.delete_tag(repository, tag, deadline=deadline):
            raise _no_manifest(repository, tag)

    async def delete_manifest(self, repository: str, digest: Digest, deadline: Deadline) -> None:
        if not await self._index.delete_manifest(repository, digest, deadline=deadline):
            raise _no_manifest(repository, digest)

    async def delete_blob(self, repository: str, digest: Digest, deadline: Deadline) -> None:
        if not await self._index.delete_blob(repository, digest, deadline=deadline):
            raise _no_blob(repository, digest)

    async def _deliver(self, manifest: Manifest, deadline: Deadline) -> list[str]:
        """Wait until all that the manifest needs, and that waits at a proxy, is delivered.

        Returns which other proxies could not be asked, and why. Raises `Unavailable`, naming what
        still waits, when so much of the deadline has passed that the rest is needed for the tag.
        """
        needed = {entry.digest for entry in (*manifest.blobs(), *manifest.children)}
        remaining = deadline.remaining()
        patience = deadline.at_most(max(remaining - self._tag_time, remaining / 4))
        (waiting, silent), own = await asyncio.gather(
            self._ask_neighbours(needed, patience), self._custody.delivered(needed, patience)
        )
        waiting |= own
        if waiting:
            named = "; ".join(f"{digest} ({how})" for digest, how in list(waiting.items())[:8])
            raise Unavailable(
                f"the manifest needs {len(waiting)} blob(s) that are still to be delivered to the "
                f"origins: {named}{'; …' if len(waiting) > 8 else ''}; send the request again",
                detail={"waiting": sorted(map(str, waiting))},
                retry_after=RETRY_AFTER,
            )
        return silent

    async def _ask_neighbours(
        self, needed: set[Digest], deadline: Deadline
    ) -> tuple[dict[Digest, str], list[str]]:
        if self._neighbours is None:
            return {}, []
        return await self._neighbours.delivered(needed, deadline)

    async def _store_manifest(
        self, repository: str, digest: Digest, body: bytes, deadline: Deadline
    ) -> None:
        session = await self._uploads.get(
            repository, await self._uploads.start(repository, digest.algorithm)
        )
        try:
            await in_thread(session.writer.append, [body])
            await self._store(session, digest, repository, deadline)
        finally:
            await self._uploads.discard(session)

    async def _take_in(
        self, session: UploadSession, digest: Digest, repository: str, deadline: Deadline
    ) -> None:
        """Store content that was verified, and link it to the repository at the same time.

        Both are needed; either alone does no harm. Nothing is linked before it is verified: a
        client that only names a digest must not come to read what it does not have.
        """
        if self._modes.of(repository).mode is PushMode.WRITE_BACK:
            storing = self._keep(session, digest, repository)
        else:
            storing = self._store(session, digest, repository, deadline)
        outcomes = await asyncio.gather(
            storing, self._link(repository, digest, deadline), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _link(self, repository: str, digest: Digest, deadline: Deadline) -> None:
        try:
            await self._index.link_blob(repository, digest, deadline=deadline)
        except CallFailed as error:
            raise Unavailable(
                f"{digest} cannot be noted as a blob of {repository}: {error}; push it again",
                detail={"digest": str(digest), "build_index": str(error)},
            ) from error

    async def _has_safely(self, repository: str, digest: Digest, deadline: Deadline) -> bool:
        """Whether a push of this blob to this repository has succeeded before.

        Raises `Unavailable` when origins that could not be asked may know better.
        """
        if not await self._index.has_blob(repository, digest, deadline=deadline, rely=True):
            return False
        copies, unasked = await self._copies(repository, digest, deadline)
        if copies < self._write_quorum and unasked:
            raise Unavailable(
                f"whether {digest} is stored safely cannot be told, {copies} of "
                f"{self._write_quorum} copies were found: {unasked}; send the request again",
                detail={"digest": str(digest), "origins": unasked},
                retry_after=RETRY_AFTER,
            )
        return copies >= self._write_quorum

    async def _is_safe(self, repository: str, digest: Digest, deadline: Deadline) -> bool:
        """Whether the content is as safe as a push to this repository would make it."""
        copies, _ = await self._copies(repository, digest, deadline)
        return copies >= self._write_quorum

    async def _copies(self, repository: str, digest: Digest, deadline: Deadline) -> tuple[int, str]:
        """How many copies were found, and who could not be asked, and why.

        Custody counts as all that a push waits for, where the repository's pushes do.
        """
        write_back = self._modes.of(repository).mode is PushMode.WRITE_BACK
        if write_back and await self._custody.size(digest) is not None:
            return self._write_quorum, ""
        presence = await self._origins.stat_many(
            [digest], deadline=deadline, keep=True, namespace=repository
        )
        copies = len(presence.copies.get(digest, ()))
        log.debug("copies", repository=repository, digest=str(digest), copies=copies)
        return copies, "; ".join(map(str, presence.unasked.values()))

    async def _keep(self, session: UploadSession, digest: Digest, repository: str) -> None:
        """Return when the content is in custody, and its session gone.

        When that fails nothing is left of the content either.
        """
        try:
            await self._custody.take(session.path, digest, repository)
        finally:
            await self._uploads.discard(session)

    async def _store(
        self, session: UploadSession, digest: Digest, repository: str, deadline: Deadline
    ) -> None:
        """Return when the write quorum has the content; raise `Unavailable` naming who failed.

        Raises `Denied` when the origins refuse it for want of a backend.
        """
        size = session.size
        try:
            await self._origins.upload(
                digest,
                session.path,
                size,
                deadline=deadline.with_transfer(size),
                namespace=repository,
            )
        except CallFailed as error:
            if (refused := refusal(error)) is not None:
                raise refused from error
            unsafe = (
                InsufficientStorage if error.status == InsufficientStorage.status else Unavailable
            )
            raise unsafe(
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


def _no_manifest(repository: str, reference: Digest | str) -> ManifestUnknown:
    what = "manifest" if isinstance(reference, Digest) else "tag"
    return ManifestUnknown(
        f"{repository} has no {what} {reference}", detail={"reference": str(reference)}
    )


def _no_blob(repository: str, digest: Digest) -> BlobUnknown:
    """The one answer for what the repository does not have, whether or not another one has it."""
    return BlobUnknown(f"{repository} has no blob {digest}", detail={"digest": str(digest)})
