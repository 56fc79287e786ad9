# SPDX-License-Identifier: Apache-2.0
"""Prefetch: have the origins hold all of an image before hosts pull it.

The proxy reads the manifests, which brings them to the origins, and has the rest fetched there. It
waits for none of that, and keeps nothing: who asks again is told how far it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, ManifestInvalid, ManifestUnknown, Unavailable
from shoal.model.manifest import FoundManifest, InvalidManifest, Manifest, parse_manifest
from shoal.model.media_types import INDEX_TYPES
from shoal.model.platforms import Platform, platforms_of
from shoal.proxy.custody import Custody
from shoal.proxy.ports import Origins
from shoal.proxy.prefetch_report import PrefetchReport
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

MAX_CONTENTS = 10_000
"""Manifests and blobs of one image; build-indexes take no larger one by default."""

MAX_DEPTH = 8
"""Manifests from the one asked for to a leaf."""

READING = 8
"""Manifests that are read at the same time."""

ASKING = 16
"""Blobs that origins are asked for at the same time."""

_NAMED = 8

T = TypeVar("T")
R = TypeVar("R")


class Manifests(Protocol):
    """The repositories' manifests (`shoal.proxy.service.ProxyService`)."""

    async def find_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest: ...

    async def manifest(
        self, repository: str, found: FoundManifest, deadline: Deadline
    ) -> bytes: ...


@dataclass
class _Contents:
    """Everything that an image needs, with sizes, as far as it was walked."""

    sizes: dict[Digest, int] = field(default_factory=dict)
    elsewhere: list[Digest] = field(default_factory=list)
    offered: set[Platform] = field(default_factory=set)
    """Platforms of children that were not asked for."""


class Prefetch:
    """Asks the origins for images."""

    def __init__(self, manifests: Manifests, origins: Origins, custody: Custody) -> None:
        """Blobs in custody are on their way to the origins already."""
        self._manifests = manifests
        self._origins = origins
        self._custody = custody

    async def image(
        self,
        repository: str,
        reference: Digest | str,
        deadline: Deadline,
        *,
        platforms: Sequence[Platform] = (),
    ) -> PrefetchReport:
        """See to it that the origins have the image, of an index the children for `platforms`.

        Without `platforms`, that is all children. Returns when each content is there or noted to be
        fetched. Raises `ManifestUnknown`, `BlobUnknown` when some of it is nowhere, `Unavailable`
        or `CallFailed` when some could not be asked for; what could be is fetched nevertheless.
        """
        found = await self._manifests.find_manifest(repository, reference, deadline)
        contents = await self._walk(repository, found, platforms, deadline)
        coming = await self._bring(repository, contents.sizes, deadline)
        return PrefetchReport(
            repository=repository,
            reference=str(reference),
            digest=str(found.digest),
            ready=not coming,
            contents=len(contents.sizes),
            size=sum(contents.sizes.values()),
            coming=len(coming),
            coming_size=sum(contents.sizes[digest] for digest in coming),
            elsewhere=sorted(map(str, contents.elsewhere)),
        )

    # -- what there is to it ------------------------------------------------------------------

    async def _walk(
        self,
        repository: str,
        found: FoundManifest,
        platforms: Sequence[Platform],
        deadline: Deadline,
    ) -> _Contents:
        contents = _Contents({found.digest: found.size})
        if not found.media_type:
            return contents  # a tag of something that is no image
        level, chosen = [found], False
        for _ in range(MAX_DEPTH):
            read = await _each(
                level, READING, lambda one: self._read(repository, one, platforms, deadline)
            )
            children: list[Digest] = []
            for manifest, wanted, offered in read:
                contents.sizes |= {entry.digest: entry.size for entry in manifest.blobs()}
                contents.offered |= offered
                chosen = chosen or not manifest.is_index
                children += [digest for digest in wanted if digest not in contents.sizes]
            if len(contents.sizes) + len(children) > MAX_CONTENTS:
                raise ManifestInvalid(f"{found.digest} needs more than {MAX_CONTENTS} contents")
            level = await self._children(repository, dict.fromkeys(children), contents, deadline)
            if not level:
                break
        else:
            raise ManifestInvalid(f"{found.digest} nests manifests more than {MAX_DEPTH} deep")
        if platforms and not chosen:
            raise _no_platform(repository, found.digest, platforms, contents)
        return contents

    async def _read(
        self,
        repository: str,
        found: FoundManifest,
        platforms: Sequence[Platform],
        deadline: Deadline,
    ) -> tuple[Manifest, list[Digest], set[Platform]]:
        """A manifest, which of its children are wanted, and the platforms of the others."""
        body = await self._manifests.manifest(repository, found, deadline)
        try:
            manifest = await in_thread(parse_manifest, body, found.media_type)
        except InvalidManifest as error:
            raise ManifestInvalid(f"{found.digest} of {repository}: {error}") from error
        if not platforms or not manifest.is_index:
            return manifest, [child.digest for child in manifest.children], set()
        said = await in_thread(platforms_of, body)
        wanted, offered = [], set()
        for child in manifest.children:
            images = said.get(child.digest, [])
            nested = not images and child.media_type in INDEX_TYPES
            if nested or any(asked.runs(image) for asked in platforms for image in images):
                wanted.append(child.digest)
            else:
                offered.update(images)
        return manifest, wanted, offered

    async def _children(
        self, repository: str, digests: Iterable[Digest], contents: _Contents, deadline: Deadline
    ) -> list[FoundManifest]:
        """Those that the repository has; an index may name others (a sparse index)."""

        async def find(digest: Digest) -> FoundManifest | None:
            try:
                return await self._manifests.find_manifest(repository, digest, deadline)
            except ManifestUnknown:
                contents.elsewhere.append(digest)
                return None

        found = [child for child in await _each(list(digests), READING, find) if child is not None]
        contents.sizes |= {child.digest: child.size for child in found}
        return found

    # -- where it is --------------------------------------------------------------------------

    async def _bring(
        self, repository: str, sizes: dict[Digest, int], deadline: Deadline
    ) -> list[Digest]:
        """Those that come; the others are there."""
        # A host that hangs leaves time for asking the others to fetch.
        soon = deadline.at_most(deadline.remaining() / 2)
        presence = await self._origins.stat_many(sizes, deadline=soon, keep=True)
        absent = [digest for digest in sizes if not presence.copies.get(digest)]
        nowhere: list[Digest] = []
        failed: dict[Digest, CallFailed] = {}

        async def ask(digest: Digest) -> bool:
            """Whether it is coming."""
            if await self._custody.size(digest) is not None:
                return True
            try:
                answer = await self._origins.prefetch(digest, repository, deadline=deadline)
            except CallFailed as error:
                failed[digest] = error
                return False
            if answer is None:
                nowhere.append(digest)
                return False
            return not answer.ready

        coming = await _each(absent, ASKING, ask)
        if nowhere:
            raise BlobUnknown(
                f"{len(nowhere)} blob(s) that the image needs are on no origin, and not in the "
                f"backend of {repository} either: {_named(nowhere)}; push the image again",
                detail={"missing": sorted(map(str, nowhere))},
            )
        if failed:
            first = next(iter(failed.values()))
            raise Unavailable(
                f"{len(failed)} blob(s) that the image needs could not be asked for: "
                f"{_named(failed)}; {first}; send the request again",
                detail={"failed": {str(digest): str(error) for digest, error in failed.items()}},
            ) from first
        return [digest for digest, comes in zip(absent, coming, strict=True) if comes]


async def _each(items: Sequence[T], at_once: int, work: Callable[[T], Awaitable[R]]) -> list[R]:
    """Do the work for each, so many at a time; when one fails, the others are ended."""
    slots = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with slots:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _no_platform(
    repository: str, digest: Digest, platforms: Sequence[Platform], contents: _Contents
) -> ManifestUnknown:
    asked = ", ".join(map(str, platforms))
    offered = ", ".join(sorted(map(str, contents.offered))) or "none that it names"
    return ManifestUnknown(
        f"{digest} of {repository} has no image for {asked} here; it is for: {offered}",
        detail={"reference": str(digest), "platforms": sorted(map(str, contents.offered))},
    )


def _named(digests: Iterable[Digest]) -> str:
    names = sorted(map(str, digests))
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
