# SPDX-License-Identifier: Apache-2.0
"""Whether the proxy can take pushes.

It needs the build-index, a write quorum of origins, and, for write_back, its own queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shoal.proxy.custody import Custody, NoCustody
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

PROBE_TIMEOUT = 2.0
"""Seconds for one probe; those of all hosts run at the same time."""


class Readiness:
    """Probes the services that a push needs."""

    def __init__(
        self,
        http: HttpClient,
        *,
        origins: Sequence[str],
        write_quorum: int,
        build_indexes: Sequence[str],
        custody: Custody | None = None,
    ) -> None:
        """Hosts are ``host:port``."""
        self._http = http
        self._origins = origins
        self._write_quorum = write_quorum
        self._build_indexes = build_indexes
        self._custody: Custody = custody or NoCustody()

    async def missing(self) -> list[str]:
        """Return what keeps the proxy from taking pushes; nothing when all is well."""
        deadline = Deadline.after(PROBE_TIMEOUT)
        origins, indexes, missing = await asyncio.gather(
            self._failures(self._origins, "/health", deadline),
            self._failures(self._build_indexes, "/readiness", deadline),
            self._custody.missing(),
        )
        reachable = len(self._origins) - len(origins)
        if reachable < self._write_quorum:
            missing.append(
                f"{reachable} origin(s) answer, the write quorum is {self._write_quorum}: "
                + "; ".join(origins)
            )
        if len(indexes) == len(self._build_indexes):
            missing.append(f"no build-index is ready: {'; '.join(indexes)}")
        return missing

    async def _failures(self, hosts: Sequence[str], path: str, deadline: Deadline) -> list[str]:
        outcomes = await asyncio.gather(*(self._failure(host, path, deadline) for host in hosts))
        return [outcome for outcome in outcomes if outcome is not None]

    async def _failure(self, host: str, path: str, deadline: Deadline) -> str | None:
        try:
            await self._http.call("GET", f"http://{host}{path}", deadline=deadline)
        except CallFailed as error:
            return str(error)
        return None
