# SPDX-License-Identifier: Apache-2.0
"""Pages of tags and repositories out of a registry's listings (OCI distribution-spec, tags/list).

The specification wants lexical order and `last` as the name after which a page begins. Not all
registries keep to it: one that does not is read whole, and put into order here.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from shoal.backend.base import Page

MAX_PAGES = 1000
MAX_NAMES = 500_000
"""A listing of more pages or names than these is not read."""

_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel\s*=\s*"?next\b', re.IGNORECASE)


class BadListing(Exception):
    """The registry's listing has no end, or is not one."""


@dataclass(frozen=True, slots=True)
class Part:
    """One answer of a listing."""

    names: list[str]
    link: str | None
    """The Link to the next one, resolved."""


Fetch = Callable[[str | None, Mapping[str, str]], Awaitable[Part]]
"""Asks for a link, or with None for the first part by query parameters."""


class _Names(msgspec.Struct):
    tags: list[str] | None = None
    repositories: list[str] | None = None


def names_in(body: bytes) -> list[str]:
    """The names in an answer; raise `BadListing`."""
    try:
        found = msgspec.json.decode(body, type=_Names)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadListing(f"it is not a listing: {error}") from error
    return found.tags or found.repositories or []


def next_link(headers: Mapping[str, str]) -> str | None:
    """The target of the Link with ``rel="next"`` (RFC 8288), as it was sent."""
    match = _NEXT.search(headers.get("Link", ""))
    return match[1] if match else None


async def page(fetch: Fetch, after: str, limit: int) -> Page:
    """At most `limit` names after `after`, in lexical order; raise `BadListing`."""
    names: list[str] = []
    query = {"n": str(limit)}
    if after:
        query["last"] = after
    last = after
    async for part in _parts(fetch, query):
        if not _in_order(last, part.names):
            return await _page_of_all(fetch, after, limit)
        last = part.names[-1] if part.names else last
        names += part.names
        if len(names) > limit or (len(names) == limit and part.link is not None):
            return Page(tuple(names[:limit]), names[limit - 1])
    return Page(tuple(names), None)


def _in_order(after: str, names: list[str]) -> bool:
    """Whether the names follow `after` and each other."""
    return all(one < other for one, other in pairwise([after, *names]))


async def _page_of_all(fetch: Fetch, after: str, limit: int) -> Page:
    every: set[str] = set()
    async for part in _parts(fetch, {"n": "1000"}):
        every.update(part.names)
    names = sorted(name for name in every if name > after)
    more = len(names) > limit
    return Page(tuple(names[:limit]), names[limit - 1] if more else None)


async def _parts(fetch: Fetch, query: Mapping[str, str]) -> AsyncIterator[Part]:
    link: str | None = None
    seen: set[str] = set()
    count = 0
    for _ in range(MAX_PAGES):
        part = await fetch(link, query)
        count += len(part.names)
        if count > MAX_NAMES:
            break
        yield part
        link = part.link
        if link is None:
            return
        if link in seen:
            raise BadListing("its Link headers lead in a circle")
        seen.add(link)
    raise BadListing(f"it does not end within {MAX_PAGES} pages and {MAX_NAMES} names")
