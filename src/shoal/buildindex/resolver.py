# SPDX-License-Identifier: Apache-2.0
"""Dependency resolution: whether the origins have all that a manifest needs, in enough copies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Protocol

import structlog

from shoal.buildindex.dependencies import DependencyWalk
from shoal.model.digest import Digest
from shoal.model.errors import DigestInvalid, ManifestBlobUnknown, ManifestInvalid, Unavailable
from shoal.model.manifest import MAX_MANIFEST_BYTES, InvalidManifest
from shoal.origin.client import Presence
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound

PARALLEL_READS = 16
"""Child manifests read at the same time."""

PARALLEL_REPAIRS = 8
"""Under-replicated blobs that are copied at the same time."""

SMALL = 64 * 1024
"""Bytes up to which hashing and parsing a manifest costs less than the way to a thread."""

log = structlog.get_logger()


class Origins(Protocol):
    """What resolution needs of the origin cluster; `shoal.origin.client.OriginCluster` has it."""

    async def read(self, digest: Digest, *, deadline: Deadline, limit: int) -> bytes: ...

    async def stat_many(self, digests: Iterable[Digest], *, deadline: Deadline) -> Presence: ...

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int: ...


class Resolver:
    """Decides whether a manifest may be tagged, and brings what it needs to the write quorum."""

    def __init__(self, origins: Origins, write_quorum: int) -> None:
        self._origins = origins
        self._write_quorum = write_quorum

    async def resolve(
        self,
        digest: Digest,
        body: bytes | None,
        content_type: str | None,
        *,
        deadline: Deadline,
    ) -> list[Digest]:
        """Every dependency of the manifest, each of them on at least `write_quorum` origins.

        Without a body the manifest is read from the origins. Raises `DigestInvalid`,
        `ManifestInvalid`, `ManifestBlobUnknown` (all owners answered, and some have it not), and
        `Unavailable` when that cannot be decided, or the copies cannot be made.
        """
        try:
            walk, absent, unread = await self._walk(digest, body, content_type, deadline)
        except InvalidManifest as error:
            raise ManifestInvalid(f"{digest}: {error}") from error
        if unread:
            raise _undecided(unread)
        await self._check(walk.digests, absent, deadline)
        return walk.digests

    async def _walk(
        self, root: Digest, body: bytes | None, content_type: str | None, deadline: Deadline
    ) -> tuple[DependencyWalk, set[Digest], dict[Digest, CallFailed]]:
        walk = DependencyWalk(root)
        absent: set[Digest] = set()
        unread: dict[Digest, CallFailed] = {}
        if body is not None:
            await _in_thread_when_large(body, lambda: _verify(root, body))
            await _in_thread_when_large(body, lambda: walk.feed(root, body, content_type))
        while pending := walk.pending[:PARALLEL_READS]:
            answers = await asyncio.gather(*(self._read(child, deadline) for child in pending))
            for child, answer in zip(pending, answers, strict=True):
                match answer:
                    case bytes() as found:
                        await _in_thread_when_large(found, partial(walk.feed, child, found))
                    case NotFound():
                        walk.absent(child)
                        absent.add(child)
                    case CallFailed() as error:
                        walk.absent(child)
                        unread[child] = error
        return walk, absent, unread

    async def _read(self, digest: Digest, deadline: Deadline) -> bytes | CallFailed:
        try:
            return await self._origins.read(digest, deadline=deadline, limit=MAX_MANIFEST_BYTES)
        except CallFailed as error:
            return error

    async def _check(self, digests: list[Digest], unfound: set[Digest], deadline: Deadline) -> None:
        """`unfound` are manifests that no origin had when they were to be read."""
        presence = await self._origins.stat_many(digests, deadline=deadline)
        absent = [digest for digest in digests if digest not in presence.sizes]
        if unfound:
            raise _missing(unfound.union(absent))
        if absent and presence.unasked:
            silent = "; ".join(f"{host}: {why.detail}" for host, why in presence.unasked.items())
            raise Unavailable(
                f"cannot tell whether {_names(absent)} is on the origins, as some could not be "
                f"asked ({silent}); try again",
                detail={"undecided": sorted(map(str, absent))},
            )
        if absent:
            raise _missing(absent)
        thin = {
            digest: presence.copies[digest]
            for digest in digests
            if len(presence.copies[digest]) < self._write_quorum
        }
        if thin:
            await self._repair(thin, deadline)

    async def _repair(self, thin: dict[Digest, frozenset[str]], deadline: Deadline) -> None:
        """Bring blobs that fewer origins have than the write quorum to it."""
        slots = asyncio.Semaphore(PARALLEL_REPAIRS)

        async def copy(digest: Digest, holders: frozenset[str]) -> str | None:
            async with slots:
                try:
                    copies = await self._origins.ensure_copies(digest, holders, deadline=deadline)
                except CallFailed as error:
                    return f"{digest} has {len(holders)} ({error.detail})"
            return None if copies >= self._write_quorum else f"{digest} has {copies}"

        failures = [
            failure
            for failure in await asyncio.gather(*(copy(*item) for item in thin.items()))
            if failure
        ]
        log.info("dependencies replicated", blobs=len(thin), failed=len(failures))
        if failures:
            raise Unavailable(
                f"{len(failures)} blob(s) of the manifest are on fewer origins than the write "
                f"quorum of {self._write_quorum}, and could not be copied: "
                f"{'; '.join(failures[:8])}; try again"
            )


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


def _missing(digests: Iterable[Digest]) -> ManifestBlobUnknown:
    return ManifestBlobUnknown.missing(digests, "all origins were asked")


def _undecided(unread: dict[Digest, CallFailed]) -> Unavailable:
    reasons = "; ".join(f"{digest}: {error.detail}" for digest, error in list(unread.items())[:8])
    return Unavailable(
        f"could not read {len(unread)} manifest(s) from the origins: {reasons}; try again",
        detail={"undecided": sorted(map(str, unread))},
    )


def _names(digests: list[Digest]) -> str:
    more = f" and {len(digests) - 4} more" if len(digests) > 4 else ""
    return ", ".join(map(str, digests[:4])) + more
