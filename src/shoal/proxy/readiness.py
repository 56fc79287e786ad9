# SPDX-License-Identifier: Apache-2.0
"""Whether the proxy can take pushes.

It needs the build-index, a write quorum of origins, and, for write_back, its own queue.
"""

from __future__ import annotations

import asyncio

from shoal.buildindex.client import BuildIndexClient
from shoal.origin.client import OriginCluster
from shoal.proxy.custody import Custody, NoCustody


class Readiness:
    """Probes the services that a push needs."""

    def __init__(
        self, origins: OriginCluster, index: BuildIndexClient, custody: Custody | None = None
    ) -> None:
        self._origins = origins
        self._index = index
        self._custody: Custody = custody or NoCustody()

    async def missing(self) -> list[str]:
        """Return what keeps the proxy from taking pushes; nothing when all is well."""
        answers = await asyncio.gather(
            self._origins.readiness(), self._index.readiness(), self._custody.missing()
        )
        return [line for lines in answers for line in lines]
