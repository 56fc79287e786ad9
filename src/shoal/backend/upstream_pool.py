# SPDX-License-Identifier: Apache-2.0
"""The backends of upstream registries, made as they are asked for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from yarl import URL

from shoal.backend.registry import RegistryBackend
from shoal.backend.safety import shown
from shoal.backend.upstreams import UpstreamNames

MOST_UNNAMED = 256
"""Registries that clients named (`_default`) and that are kept while they are not in use; those
used longest ago go first."""


class UpstreamPool:
    """One backend for each upstream registry: its connections, tokens and rate limit."""

    def __init__(self, names: UpstreamNames) -> None:
        self._names = names
        self._named: dict[str, RegistryBackend] = {}
        self._unnamed: OrderedDict[str, RegistryBackend] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def empty(self) -> bool:
        """Whether there is no upstream at all."""
        return not self._names.any

    def description(self, repository: str) -> str | None:
        """What the upstream of a repository calls itself; opens nothing. From any thread."""
        remote = self._names.remote(repository)
        return None if remote is None else shown(URL(remote.url))

    def backend(self, repository: str) -> RegistryBackend | None:
        """The upstream of a repository; None: it is one of Shoal's own."""
        remote = self._names.remote(repository)
        if remote is None:
            return None
        kept = self._named if remote.configured else self._unnamed
        found = kept.get(remote.registry)
        if found is None:
            found = kept[remote.registry] = RegistryBackend.upstream(remote)
        if not remote.configured:
            self._unnamed.move_to_end(remote.registry)
            self._let_go(found)
        return found

    def _let_go(self, wanted: RegistryBackend) -> None:
        """Close what is too much and idle: what is being downloaded comes to its end."""
        surplus = len(self._unnamed) - MOST_UNNAMED
        for registry, backend in list(self._unnamed.items()) if surplus > 0 else ():
            if surplus == 0:
                return
            if backend is not wanted and backend.idle:
                surplus -= 1
                del self._unnamed[registry]
                task = asyncio.create_task(backend.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Let all connections go."""
        for backend in (*self._named.values(), *self._unnamed.values()):
            await backend.close()
        await asyncio.gather(*self._closing)
