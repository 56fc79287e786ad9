# SPDX-License-Identifier: Apache-2.0
"""Dependency resolution: whether all that a manifest needs is there.

It must be in the manifest's repository, and on the origins in enough copies. What is missing may be
on its way: it is asked for again under the policies of the config, within the caller's deadline,
before a push is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from shoal.buildindex import metrics
from shoal.buildindex.attempts import Effort
from shoal.buildindex.config import ResolverConfig
from shoal.buildindex.dependencies import DependencyWalk, ReadManifest
from shoal.buildindex.existence import ExistenceCheck, Missing, Origins
from shoal.buildindex.membership import Membership, MembershipCheck
from shoal.buildindex.tag_types import TagType, TagTypes
from shoal.model.digest import Digest
from shoal.model.errors import (
    ApiError,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    Unavailable,
)
from shoal.model.manifest import MAX_MANIFEST_BYTES, IndexChildren, InvalidManifest, Manifest
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound
from shoal.web.retrying import RetriesExhausted, spent

PARALLEL_READS = 16
"""Child manifests of a push that are read at the same time."""

ANSWER_TIME = 0.25
"""Seconds of the caller's time that are kept for the answer."""

ANSWER_SHARE = 0.1
"""No more of the caller's time than this share is kept for the answer."""

SMALL = 64 * 1024
"""Bytes up to which hashing and parsing a manifest costs less than the way to a thread."""

_DOWNLOAD = "manifest download"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is to be tagged, or kept by its digest."""

    name: str
    """``repository:tag`` or ``repository@digest``."""

    repository: str
    digest: Digest
    body: bytes | None = None
    """The manifest; without it, it is read from the origins."""

    content_type: str | None = None
    index_children: IndexChildren | None = None
    """What an index needs of its children; None: what the config says."""

    adopt: bool = False
    """Whether what is needed becomes part of the repository. Without it, it must be so already."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A manifest, and what it needs: all of it is safe."""

    root: Manifest | None
    """None: the tag's type is ``default``, and nobody looked whether it is a manifest."""

    size: int
    """Bytes of the root."""

    digests: tuple[Digest, ...]
    """All that is needed, the root first, each digest once."""

    blobs: tuple[Digest, ...] = ()
    """Those of `digests` that are needed as blobs."""

    manifests: Mapping[Digest, ReadManifest] = field(default_factory=dict)
    """Those of `digests` that are needed as manifests, without the root."""


class Resolver:
    """Decides whether a manifest may be tagged, and brings what it needs to the write quorum."""

    def __init__(
        self,
        origins: Origins,
        membership: Membership,
        write_quorum: int,
        config: ResolverConfig | None = None,
        tag_types: TagTypes | None = None,
        *,
        has_backend: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`has_backend`: whether what a repository needs may be in a backend, too."""
        self._origins = origins
        self._membership = membership
        self._write_quorum = write_quorum
        self._config = config or ResolverConfig()
        self._tag_types = tag_types or TagTypes(())
        self._has_backend = has_backend

    async def resolve(self, candidate: Candidate, *, deadline: Deadline) -> Resolved:
        """What the candidate needs, each part of it on at least `write_quorum` origins.

        Raises `DigestInvalid`, `ManifestInvalid`, `ManifestBlobUnknown` (some digests are not in
        the repository, or all origins answered and none of them has them, after all attempts),
        `Unavailable` when that cannot be decided or the copies cannot be made, and the `CallFailed`
        of origins that refuse to answer.
        """
        effort = Effort(candidate.name, with_time_to_answer(deadline), self._config.attempt_timeout)
        started = time.monotonic()
        try:
            found = await self._resolution(candidate, effort).run()
        except Exception as error:
            # A caller that leaves is no result, and not counted.
            metrics.RESOLVE_SECONDS.labels("refused").observe(time.monotonic() - started)
            if isinstance(error, InvalidManifest):
                raise ManifestInvalid(f"{candidate.digest}: {error}") from error
            raise
        metrics.RESOLVE_SECONDS.labels("accepted").observe(time.monotonic() - started)
        if effort.retries:
            metrics.PUSHES_SAVED.inc()
        return found

    def _resolution(self, candidate: Candidate, effort: Effort) -> _Resolution:
        config = self._config
        walk = DependencyWalk(
            candidate.digest,
            children=candidate.index_children or config.index_children,
            max_count=config.max_count,
            max_depth=config.max_depth,
        )
        members = MembershipCheck(
            None if candidate.adopt else self._membership, candidate.repository, walk
        )
        existence = ExistenceCheck(
            self._origins,
            members,
            effort,
            candidate.digest,
            quorum=self._write_quorum,
            policy=config.existence,
            backed=self._has_backend(candidate.repository),
        )
        tag_type = self._tag_types.of(candidate.name)
        return _Resolution(
            candidate,
            tag_type,
            walk=walk,
            existence=existence,
            origins=self._origins,
            effort=effort,
            policy=config.manifest,
            namespace=candidate.repository if self._has_backend(candidate.repository) else "",
        )


class _Resolution:
    """The resolution of one candidate."""

    def __init__(
        self,
        candidate: Candidate,
        tag_type: TagType,
        *,
        walk: DependencyWalk,
        existence: ExistenceCheck,
        origins: Origins,
        effort: Effort,
        policy: RetryPolicy,
        namespace: str,
    ) -> None:
        """`namespace`: the repository whose backend may have what no origin has; empty: none."""
        self._candidate = candidate
        self._namespace = namespace
        self._tag_type = tag_type
        self._walk = walk
        self._existence = existence
        self._origins = origins
        self._effort = effort
        self._policy = policy

    async def run(self) -> Resolved:
        root, body = self._candidate.digest, self._candidate.body
        if body is not None:
            await _in_thread_when_large(body, lambda: _verify(root, body))
        match self._tag_type:
            case "docker":
                return await self._image_or_index(root, body)
            case "default":
                await self._safe([root])
                return Resolved(None, self._existence.sizes[root], (root,))
            case _:
                assert_never(self._tag_type)

    async def _image_or_index(self, root: Digest, body: bytes | None) -> Resolved:
        if body is None:
            body = await self._download_root(root)
        await self._feed(root, body, self._candidate.content_type)
        walk = self._walk
        while walk.pending:
            await self._read_children()
        await self._safe(walk.digests)
        read = dict(walk.read)
        manifest = read.pop(root).manifest
        return Resolved(manifest, len(body), tuple(walk.digests), tuple(walk.blobs), read)

    async def _read_children(self) -> None:
        """Read the manifests of the next level, once they are there."""
        await self._safe(self._walk.digests)
        level = self._walk.pending
        for batch in _batches(level):
            used = self._effort.used_up(_DOWNLOAD)
            downloads = (self._download(digest, used) for digest in batch)
            bodies = await asyncio.gather(*downloads, return_exceptions=True)
            for child, body in zip(batch, bodies, strict=True):
                if isinstance(body, BaseException):
                    raise _unread(child, body)
                await self._feed(child, body)

    async def _safe(self, digests: list[Digest]) -> None:
        try:
            dropped = await self._existence.ensure(digests, self._walk.optional)
        except Missing as missing:
            raise await self._unknown(missing) from missing.tried
        for digest in dropped:
            self._walk.drop(digest)

    async def _unknown(self, missing: Missing) -> ManifestBlobUnknown:
        """Name all that is missing, that of the children that are there, too."""
        found = set(missing.digests)
        with suppress(ApiError, CallFailed):
            await self._find_the_rest(found)
        asked = "all origins"
        if not self._candidate.adopt:
            asked = f"the repository {self._candidate.repository} and {asked}"
        tried = missing.tried
        error = ManifestBlobUnknown.missing(
            found, f"{asked} were asked, {spent(tried.attempts, tried.seconds)}"
        )
        error.detail["attempts"] = tried.attempts
        return error

    async def _find_the_rest(self, found: set[Digest]) -> None:
        """Add what else is missing: asked once for each level, and read where it is there.

        A child is not read before it is known to be in the repository: an error must not tell what
        is in the manifests of others.
        """
        while not self._effort.deadline.expired:
            rest = [digest for digest in self._walk.digests if digest not in found]
            gone = await self._existence.absent(rest, self._effort.deadline)
            for digest in gone & self._walk.optional:
                self._walk.drop(digest)
            found |= gone & set(self._walk.digests)
            for digest in found.intersection(self._walk.pending):
                self._walk.absent(digest)
            level = self._walk.pending
            if not level:
                return
            for batch in _batches(level):
                bodies = await asyncio.gather(*map(self._read_once, batch), return_exceptions=True)
                for digest, body in zip(batch, bodies, strict=True):
                    if isinstance(body, BaseException):
                        self._walk.absent(digest)
                    else:
                        await self._feed(digest, body)

    async def _download_root(self, root: Digest) -> bytes:
        try:
            return await self._download(root, 0)
        except RetriesExhausted as exhausted:
            if isinstance(exhausted.last, NotFound):
                raise await self._unknown(Missing([root], exhausted)) from exhausted
            raise _unread(root, exhausted) from exhausted

    async def _download(self, digest: Digest, used: int) -> bytes:
        async def read(deadline: Deadline) -> bytes:
            return await self._origins.read(
                digest,
                deadline=deadline,
                limit=MAX_MANIFEST_BYTES,
                namespace=self._namespace,
            )

        return await self._effort.spend(
            read,
            what=_DOWNLOAD,
            digest=digest,
            policy=self._policy,
            used=used,
            outcomes=metrics.MANIFEST_DOWNLOADS,
            attempts=metrics.MANIFEST_ATTEMPTS,
        )

    async def _read_once(self, digest: Digest) -> bytes:
        deadline = self._effort.deadline.at_most(self._effort.attempt_timeout)
        async with asyncio.timeout(deadline.remaining()):
            return await self._origins.read(
                digest,
                deadline=deadline,
                limit=MAX_MANIFEST_BYTES,
                namespace=self._namespace,
            )

    async def _feed(self, digest: Digest, body: bytes, content_type: str | None = None) -> None:
        await _in_thread_when_large(body, partial(self._walk.feed, digest, body, content_type))


def _batches(digests: list[Digest]) -> Iterator[list[Digest]]:
    for start in range(0, len(digests), PARALLEL_READS):
        yield digests[start : start + PARALLEL_READS]


def with_time_to_answer(deadline: Deadline) -> Deadline:
    """The deadline less what the answer needs: a refusal that comes late explains nothing."""
    return Deadline(deadline.at - min(ANSWER_TIME, ANSWER_SHARE * deadline.remaining()))


def _verify(digest: Digest, body: bytes) -> None:
    if len(body) > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, got {len(body)}")
    found = Digest.of(body, digest.algorithm)
    if found != digest:
        raise DigestInvalid(
            f"the manifest's {len(body)} bytes have the digest {found}, not {digest}"
        )


async def _in_thread_when_large(body: bytes, work: Callable[[], object]) -> None:
    if len(body) <= SMALL:
        work()
    else:
        await asyncio.to_thread(work)


def _unread(digest: Digest, error: BaseException) -> BaseException:
    """The answer for a manifest that is needed and could not be read."""
    if not isinstance(error, RetriesExhausted):
        return error
    unavailable = Unavailable(
        f"could not read the manifest {digest} from the origins: {error.message}; try again",
        detail={"undecided": [str(digest)], "attempts": error.attempts},
    )
    unavailable.headers |= error.headers
    unavailable.__cause__ = error
    return unavailable
