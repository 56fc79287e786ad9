# SPDX-License-Identifier: Apache-2.0
"""Pages of names out of a tree of folders, in lexical order of the names.

That is not the order in which storages list paths: the tag ``1.0`` comes before ``1.0-alpine``,
while ``1.0-alpine/current`` comes before ``1.0/current``, because ``-`` and ``.`` sort before
``/``. So folders are asked for their children, and the children are put into order here.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from shoal.backend.base import BlobName, Page, TagsOf
from shoal.backend.paths import Layout, NoPath
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.names import InvalidName, InvalidTag, repository_name, tag_name


class Folders(Protocol):
    """A tree of folders."""

    async def children(self, path: str) -> Sequence[str]:
        """What lies in a folder, each by its own name; nothing if there is no such folder."""
        ...


async def page_of(names: AsyncIterator[str], limit: int) -> Page:
    """The first `limit` names; one more is asked for, to know whether this is the last page."""
    kept: list[str] = []
    async for name in names:
        if len(kept) == limit:
            return Page(tuple(kept), kept[-1])
        kept.append(name)
    return Page(tuple(kept), None)


async def tags(folders: Folders, layout: Layout, listing: TagsOf, after: str) -> AsyncIterator[str]:
    """Tags after `after`; the whole folder is listed for each page."""
    for name in sorted(await folders.children(layout.tags(listing.repository))):
        if name > after and _is_tag(name):
            yield name


async def repositories(folders: Folders, layout: Layout, after: str) -> AsyncIterator[str]:
    """Repositories with a tag, after `after`: the folder with the least name is opened next.

    A folder's name is less than all those below it, so this is their lexical order; and no more is
    opened than the page needs.
    """
    heap = [""]
    while heap:
        name = heapq.heappop(heap)
        below = await folders.children("/".join(filter(None, (layout.repositories, name))))
        if name > after and "_manifests" in below and await _tagged(folders, layout, name):
            yield name
        for child in below:
            inner = f"{name}/{child}" if name else child
            # All names below a folder are less than its own with "0", which follows "/".
            if not child.startswith("_") and f"{inner}0" > after and _is_repository(inner):
                heapq.heappush(heap, inner)


async def blobs(
    folders: Folders, layout: Layout, repository: str, after: str
) -> AsyncIterator[str]:
    """Digests after `after`, folder by folder."""
    base = layout.blobs(repository)
    levels = layout.blob_levels(repository)
    last = path_after(layout, repository, after)
    bound = last.removeprefix(f"{base}/").split("/") if last else []

    async def walk(above: list[str]) -> AsyncIterator[str]:
        depth = len(above)
        for child in sorted(await folders.children("/".join(filter(None, (base, *above))))):
            parts = [*above, child]
            if levels[depth].fullmatch(child) is None or parts < bound[: depth + 1]:
                continue
            if depth + 1 < len(levels):
                async for found in walk(parts):
                    yield found
                continue
            digest = layout.digest(repository, "/".join(filter(None, (base, *parts))))
            if digest is not None and str(digest) > after:
                yield str(digest)

    async for found in walk([]):
        yield found


def path_after(layout: Layout, repository: str, after: str) -> str | None:
    """The path of the blob whose digest is `after`; raises `NoPath` if it is none."""
    if not after:
        return None
    try:
        return layout.path(BlobName(repository, Digest.parse(after)))
    except InvalidDigest as error:
        raise NoPath(f"a page of blobs begins after a digest: {error}") from error


async def _tagged(folders: Folders, layout: Layout, repository: str) -> bool:
    return any(map(_is_tag, await folders.children(layout.tags(repository))))


def _is_tag(name: str) -> bool:
    try:
        tag_name(name)
    except InvalidTag:
        return False
    return True


def _is_repository(name: str) -> bool:
    try:
        repository_name(name)
    except InvalidName:
        return False
    return True
