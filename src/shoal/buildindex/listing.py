# SPDX-License-Identifier: Apache-2.0
"""Lists of tags and repositories: those of the records, and those that only a backend has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from shoal.backend import base
from shoal.backend.matching import Backends, Matched
from shoal.buildindex.records import Page
from shoal.buildindex.store import Store
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Rejected

STEP = 1_000
"""Names that a backend is asked for at once."""

MAX_STEPS = 100
"""Pages of a backend that are read for one page of a list: all others were deleted here."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a sorted list: all that it has up to its end, or to the last of its names."""

    names: Sequence[str]
    more: bool
    """Whether names may follow."""

    end: str = ""
    """With `more`: the name up to which it is complete."""


def merged(parts: Collection[Part], count: int) -> tuple[list[str], Part]:
    """Up to `count` names of several lists as one, and where it goes on. Pure.

    No name is given beyond the first place where one of the lists is not known any more.
    """
    ends = [part.end for part in parts if part.more]
    horizon = min(ends, default=None)
    names = sorted({name for part in parts for name in part.names})
    known = [name for name in names if horizon is None or name <= horizon]
    shown = known[:count]
    if len(known) > count:
        return shown, Part((), more=True, end=shown[-1])
    return shown, Part((), more=horizon is not None, end=horizon or "")


class Listings:
    """Lists as one build-index gives them."""

    def __init__(self, store: Store, backends: Backends, *, timeout: float) -> None:
        """`timeout`: seconds that a backend has for a page."""
        self._store = store
        self._backends = backends
        self._timeout = timeout

    async def tags(self, repository: str, last: str, count: int) -> Page | None:
        """A page of a repository's tags; None: there is no such repository."""

        async def recorded(after: str) -> Page | None:
            return await self._store.read(lambda view: view.tags(repository, after, count))

        async def not_deleted(names: Sequence[str]) -> list[str]:
            return await self._store.read(
                lambda view: [n for n in names if view.version("tag", repository, n) is None]
            )

        matched = self._backends.for_tags(repository)
        if matched is None:
            return await recorded(last)
        places = [_Place(matched, base.TagsOf(repository), not_deleted)]
        return await self._page(recorded, places, last, count)

    async def repositories(self, last: str, count: int) -> Page:
        """A page of all repositories; those of upstreams only where something of them is here."""

        async def recorded(after: str) -> Page:
            return await self._store.read(lambda view: view.repositories(after, count))

        places = [
            _Place(matched, base.Repositories(), self._own(matched))
            for matched in self._backends.of_tags()
        ]
        page = await self._page(recorded, places, last, count)
        return page or Page([], more=False)

    def _own(self, place: Matched) -> Callable[[Sequence[str]], Awaitable[list[str]]]:
        """Those that the config has in this backend, and not in another one."""

        async def own(names: Sequence[str]) -> list[str]:
            return [
                name
                for name in names
                if (matched := self._backends.for_tags(name)) is not None
                and matched.backend is place.backend
            ]

        return own

    async def _page(
        self,
        recorded: Callable[[str], Awaitable[Page | None]],
        places: Sequence[_Place],
        last: str,
        count: int,
    ) -> Page | None:
        there = False
        for _ in range(MAX_STEPS):
            page = await recorded(last)
            there = there or page is not None
            names = [] if page is None else page.names
            parts = [Part(names, page is not None and page.more, names[-1] if names else last)]
            for place in places:
                part = await self._step(place, last, count, known=bool(names))
                there = there or bool(part.names)
                parts.append(part)
            shown, rest = merged(parts, count)
            if shown or not rest.more:
                return Page(shown, rest.more) if there else None
            last = rest.end
        return Page([], more=False) if there else None

    async def _step(self, place: _Place, after: str, count: int, *, known: bool) -> Part:
        """A page of a backend. While it does not answer, what is `known` here is the list."""
        backend = place.matched.backend
        try:
            page = await backend.list(
                place.listing,
                after=after,
                limit=min(count, STEP),
                deadline=Deadline.after(self._timeout),
            )
        except Rejected as error:
            log.debug("a backend does not list", backend=backend.description, error=str(error))
            return Part((), more=False)
        except CallFailed as error:
            if not known:
                raise
            log.warning(
                "a list is without what only the backend has",
                backend=backend.description,
                error=str(error),
            )
            return Part((), more=False)
        names = await place.of_here(page.names)
        return Part(names, page.last is not None, page.last or "")


@dataclass(frozen=True, slots=True)
class _Place:
    """A backend that has a part of a list."""

    matched: Matched
    listing: base.Listing
    of_here: Callable[[Sequence[str]], Awaitable[list[str]]]
    """Those of its names that are to be listed."""
