# SPDX-License-Identifier: Apache-2.0
"""Two backends with the same content, for moving from one to the other without a pause."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from shoal.backend.asking import Call
from shoal.backend.base import Backend, BlobName, Content, Listing, Name, Page, Source
from shoal.backend.sources import as_source
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound

T = TypeVar("T")


class ShadowBackend:
    """`active` is read first and listed; `mirror` is written, too, and read for what is missing.

    A `put` that returns has stored in both. One that fails may have stored in one of them; the
    same `put` again completes it.
    """

    def __init__(self, active: Backend, mirror: Backend) -> None:
        self.active = active
        self.mirror = mirror

    @property
    def description(self) -> str:
        return f"{self.active.description} + {self.mirror.description}"

    @property
    def read_only(self) -> bool:
        return self.active.read_only or self.mirror.read_only

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        """As a reader would find it: what `active` has, else what `mirror` has."""
        return await self._either(lambda backend: backend.stat(name, deadline=deadline))

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        async with AsyncExitStack() as stack:

            async def enter(backend: Backend) -> Content | None:
                try:
                    got = backend.get(name, start, stop, deadline=deadline)
                    return await stack.enter_async_context(got)
                except NotFound:
                    return None

            content = await self._either(enter)
            if content is None:
                raise NotFound("GET", self.description, f"neither has {name}", status=404)
            yield content

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        """Store in `active`, then in `mirror`; a blob that one already has is not sent again."""
        content = await as_source(Call("PUT", self.description), source)
        for backend in (self.active, self.mirror):
            if isinstance(name, BlobName) and (
                await backend.stat(name, deadline=deadline) == content.size
            ):
                continue
            await backend.put(name, source, deadline=deadline)

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        return await self.active.list(listing, after=after, limit=limit, deadline=deadline)

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        there = await self.active.delete(name, deadline=deadline)
        return await self.mirror.delete(name, deadline=deadline) or there

    async def close(self) -> None:
        await self.active.close()
        await self.mirror.close()

    async def _either(self, ask: Callable[[Backend], Awaitable[T | None]]) -> T | None:
        """Ask `active`, then `mirror`; "not there" is the answer of both."""
        failure: CallFailed | None = None
        try:
            found = await ask(self.active)
        except CallFailed as error:
            found, failure = None, error
        if found is None:
            found = await ask(self.mirror)
        if found is None and failure is not None:
            raise failure
        return found
