# SPDX-License-Identifier: Apache-2.0
"""The backends of upstream registries, made as they are asked for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from shoal.backend.registry import RegistryBackend
from shoal.backend.upstreams import UpstreamNames

MOST_UNNAMED = 256
"""Registries that clients named (`_default`) and that are kept; those used longest ago go first."""


class UpstreamPool:
    """One backend for each upstream registry: its connections, tokens and rate limit."""

    def __init__(self, names: UpstreamNames) -> None:
        self._names = names
        self._named: dict[str, RegistryBackend] = {}
        self._unnamed: OrderedDict[str, RegistryBackend] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

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
            if len(self._unnamed) > MOST_UNNAMED:
                _, oldest = self._unnamed.popitem(last=False)
                task = asyncio.create_task(oldest.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        return found

    async def close(self) -> None:
        """Let all connections go."""
        for backend in (*self._named.values(), *self._unnamed.values()):
            await backend.close()
        await asyncio.gather(*self._closing)
