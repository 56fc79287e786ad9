# SPDX-License-Identifier: Apache-2.0
"""The registry that an agent is for its host: what a repository has, by the build-index.

The build-index is asked each time, so that a push, a move of a tag and a deletion are seen at once.
While none answers, what it confirmed before still holds here (`shoal.agent.membership`).
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

import structlog

from shoal.agent.membership import Membership, Said
from shoal.agent.timeline import Journal
from shoal.model.digest import Digest
from shoal.model.errors import ApiError, BlobUnknown, ManifestUnknown
from shoal.model.manifest import (
    MAX_MANIFEST_BYTES,
    FoundManifest,
    InvalidManifest,
    Manifest,
    Referrer,
    parse_manifest,
)
from shoal.registry.membership import for_members
from shoal.store.memory import MemoryCache
from shoal.store.threads import in_thread
from shoal.web.bodies import Blob, read_whole
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Unreachable

PATIENCE = 2.0
"""Seconds for the build-index to answer when there is an older answer to go by."""

SILENT_PATIENCE = 0.25
"""The same while the last answer did not come: a pull has many layers, and each would wait."""

HOSTS_PATIENCE = 5.0
"""Seconds for other hosts to give a manifest that no origin gives."""

LOOK_AHEAD = 64
"""Children of an index that are looked up when it is first read: more than it has platforms."""

log = structlog.get_logger(__name__)


class Index(Protocol):
    """What is asked of the build-index (`shoal.buildindex.client.BuildIndexClient`)."""

    async def find_manifest(
        self,
        repository: str,
        reference: Digest | str,
        *,
        deadline: Deadline,
        through: bool = True,
    ) -> FoundManifest | None: ...

    async def has_blob(
        self, repository: str, digest: Digest, *, deadline: Deadline, rely: bool = False
    ) -> bool: ...

    async def get_tag(self, repository: str, tag: str, *, deadline: Deadline) -> Digest | None: ...

    async def tags(
        self, repository: str, n: int, last: str, *, deadline: Deadline
    ) -> list[str]: ...

    async def repositories(self, n: int, last: str, *, deadline: Deadline) -> list[str]: ...

    async def referrers(
        self,
        repository: str,
        subject: Digest,
        *,
        artifact_type: str | None,
        n: int,
        last: str,
        deadline: Deadline,
    ) -> list[Referrer]: ...


class Blobs(Protocol):
    """Blobs by digest, whoever they belong to (`shoal.agent.service.AgentService`)."""

    async def size(self, digest: Digest, deadline: Deadline, namespace: str = "") -> int | None: ...

    async def fetch(self, digest: Digest, namespace: str, said: Said | None = None) -> None: ...

    async def open_blob(self, digest: Digest, namespace: str, deadline: Deadline) -> Blob: ...

    async def keep_small(self, digest: Digest, data: bytes) -> None: ...


class Origins(Protocol):
    """Where manifests come from (`shoal.origin.client.OriginCluster`)."""

    async def read(
        self, digest: Digest, *, deadline: Deadline, limit: int, namespace: str = ""
    ) -> bytes: ...


class Disk(Protocol):
    """Manifests on this host's disk (`shoal.agent.library.Library`). Blocks."""

    def read_small(self, digest: Digest) -> bytes | None: ...


class Pulls:
    """The reading half of a registry (`shoal.registry.ports.Reader`)."""

    def __init__(
        self,
        *,
        index: Index,
        blobs: Blobs,
        origins: Origins,
        disk: Disk,
        membership: Membership,
        manifests: MemoryCache,
        journal: Journal,
    ) -> None:
        self._index = index
        self._blobs = blobs
        self._origins = origins
        self._disk = disk
        self._membership = membership
        self._manifests = manifests
        self._journal = journal
        self._silent = False
        """The build-index did not answer when it was last asked about what is known here."""

    # -- manifests

    async def resolve(self, repository: str, tag: str, deadline: Deadline) -> Digest:
        """The digest that the tag has now, be it that of a manifest or of anything else."""
        digest = await self._index.get_tag(repository, tag, deadline=deadline)
        if digest is None:
            raise _no_manifest(repository, tag)
        return digest

    async def find_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        """A manifest by tag or digest; a tag is never answered from memory, as tags move."""
        digest = reference if isinstance(reference, Digest) else None
        known = None if digest is None else self._membership.manifest(repository, digest)
        patience = deadline if known is None else self._patience(deadline)
        began = monotonic()
        try:
            found = await self._index.find_manifest(repository, reference, deadline=patience)
        except CallFailed as error:
            if known is None:
                raise
            self._go_on(repository, known.digest, error)
            self._journal.looked_up(repository, reference, known.digest, began, monotonic())
            return known
        self._silent = False
        if found is None:
            if digest is not None:
                self._membership.deny_manifest(repository, digest)
            raise _no_manifest(repository, reference)
        self._membership.confirm_manifest(repository, found)
        self._journal.looked_up(repository, reference, found.digest, began, monotonic())
        return found

    async def stat_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        """As `find_manifest`: nobody pushes to an agent."""
        return await self.find_manifest(repository, reference, deadline)

    async def manifest(self, repository: str, found: FoundManifest, deadline: Deadline) -> bytes:
        """Its bytes: from memory, this host's disk, the origins, or hosts that have pulled it."""
        began, source = monotonic(), "memory"
        body = self._manifests.get(found.digest)
        if body is None:
            body, source = await self._read(repository, found.digest, deadline)
            self._manifests.keep(found.digest, body)
        read = monotonic()
        content: Manifest | None = None
        learn = not self._membership.has_learned(repository, found.digest)
        if learn or not self._journal.knows(repository, found.digest):
            content = await asyncio.to_thread(_content, body, found.media_type)
        self._journal.read_manifest(
            repository, found.digest, began, read, source, len(body), content
        )
        if learn and content is not None:
            await self._learn(repository, found, content, self._patience(deadline))
        return body

    async def _read(self, repository: str, digest: Digest, deadline: Deadline) -> tuple[bytes, str]:
        """The manifest, and where it came from."""
        cached = await asyncio.to_thread(self._disk.read_small, digest)
        if cached is not None:
            return cached, "disk"
        try:
            body = await self._origins.read(
                digest, deadline=deadline, limit=MAX_MANIFEST_BYTES, namespace=repository
            )
        except NotFound as error:
            raise _no_manifest(repository, digest) from error
        except Unreachable as error:
            found = await self._from_hosts(repository, digest, deadline)
            if found is None:
                raise
            log.warning("a manifest comes from other hosts", digest=str(digest), error=str(error))
            return found, "hosts"
        try:
            await self._blobs.keep_small(digest, body)
        except OSError as error:
            log.warning("a manifest cannot be kept on disk", digest=str(digest), error=str(error))
        return body, "origins"

    async def _from_hosts(
        self, repository: str, digest: Digest, deadline: Deadline
    ) -> bytes | None:
        """The manifest from hosts that have pulled it; None when there are none."""
        soon = deadline.at_most(HOSTS_PATIENCE)
        try:
            async with asyncio.timeout(soon.remaining()):
                blob = await self._blobs.open_blob(digest, repository, soon)
                try:
                    if blob.size > MAX_MANIFEST_BYTES:
                        return None
                    body = await read_whole(blob)
                finally:
                    await blob.close()
                right = await in_thread(Digest.of, body, digest.algorithm) == digest
                return body if right else None
        except (ApiError, CallFailed, OSError) as error:
            log.info("no other host gives a manifest", digest=str(digest), error=str(error))
            return None

    async def _learn(
        self, repository: str, found: FoundManifest, manifest: Manifest, deadline: Deadline
    ) -> None:
        """Remember what the manifest shows: the pull that began with it must be able to go on.

        Its blobs were members when it was pushed, and stay so as long as it is there. The children
        of an index may live elsewhere, so the build-index is asked about them, now that it answers;
        upstreams are not, which count what they are asked for, as this host wants one child of all.
        """
        self._membership.confirm_blobs(repository, found.digest, manifest.blobs())
        children = [child.digest for child in manifest.children[:LOOK_AHEAD]]
        try:
            answers = await asyncio.gather(
                *(
                    self._index.find_manifest(repository, child, deadline=deadline, through=False)
                    for child in children
                )
            )
        except CallFailed as error:
            log.warning(
                "cannot look up the children of an index: pulls of them will need a build-index",
                repository=repository,
                digest=str(found.digest),
                error=str(error),
            )
            return
        for child in answers:
            if child is not None:
                self._membership.confirm_manifest(repository, child)
        self._membership.learned(repository, found.digest)

    # -- blobs

    async def stat_blob(self, repository: str, digest: Digest, deadline: Deadline) -> int:
        """The size of a blob; nothing is downloaded."""
        size = await for_members(
            self._has_blob(repository, digest, deadline),
            self._blobs.size(digest, deadline, repository),
        )
        if size is None:
            raise _no_blob(repository, digest)
        return size

    async def open_blob(self, repository: str, digest: Digest, deadline: Deadline) -> Blob:
        """A blob, from this host's disk or while it arrives.

        The download of what this repository had before begins at once; nobody has this host fetch
        what may be foreign, and no byte is sent before the build-index has answered.
        """
        if self._membership.has_blob(repository, digest):
            said = self._membership.said_of(repository, digest)
            member, _ = await asyncio.gather(
                self._has_blob(repository, digest, deadline),
                self._blobs.fetch(digest, repository, said),
            )
        else:
            member = await self._has_blob(repository, digest, deadline)
        if not member:
            raise _no_blob(repository, digest)
        try:
            return await self._blobs.open_blob(digest, repository, deadline)
        except BlobUnknown as error:
            raise _no_blob(repository, digest) from error

    async def _has_blob(self, repository: str, digest: Digest, deadline: Deadline) -> bool:
        known = self._membership.has_blob(repository, digest)
        patience = self._patience(deadline) if known else deadline
        began = monotonic()
        try:
            member = await self._index.has_blob(repository, digest, deadline=patience)
        except CallFailed as error:
            if not known:
                raise
            self._go_on(repository, digest, error)
            self._journal.asked_membership(digest, monotonic() - began)
            return True
        self._silent = False
        if member:
            self._journal.asked_membership(digest, monotonic() - began)
            self._membership.confirm_blob(repository, digest)
        else:
            self._membership.deny_blob(repository, digest)
        return member

    def _patience(self, deadline: Deadline) -> Deadline:
        return deadline.at_most(SILENT_PATIENCE if self._silent else PATIENCE)

    def _go_on(self, repository: str, digest: Digest, error: CallFailed) -> None:
        self._silent = True
        log.warning(
            "no build-index answers; going by what it confirmed before",
            repository=repository,
            digest=str(digest),
            error=str(error),
        )

    # -- listings

    async def tags(self, repository: str, n: int, last: str, deadline: Deadline) -> list[str]:
        """Tags of a repository, by the build-index."""
        return await self._index.tags(repository, n, last, deadline=deadline)

    async def repositories(self, n: int, last: str, deadline: Deadline) -> list[str]:
        """Repositories, by the build-index."""
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
        """Manifests whose subject this is, by the build-index."""
        return await self._index.referrers(
            repository, subject, artifact_type=artifact_type, n=n, last=last, deadline=deadline
        )


def _content(body: bytes, media_type: str) -> Manifest:
    try:
        return parse_manifest(body, media_type)
    except InvalidManifest:
        return Manifest(media_type)  # a tag may name anything


def _no_manifest(repository: str, reference: Digest | str) -> ManifestUnknown:
    what = "manifest" if isinstance(reference, Digest) else "tag"
    return ManifestUnknown(
        f"{repository} has no {what} {reference}", detail={"reference": str(reference)}
    )


def _no_blob(repository: str, digest: Digest) -> BlobUnknown:
    """The one answer for what the repository does not have, whether or not another one has it."""
    return BlobUnknown(f"{repository} has no blob {digest}", detail={"digest": str(digest)})
