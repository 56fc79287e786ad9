# SPDX-License-Identifier: Apache-2.0
"""Whether this agent can do its job."""

from __future__ import annotations

import asyncio

from shoal.buildindex.client import BuildIndexClient
from shoal.swarm.node import SwarmNode
from shoal.tracker.client import TrackerClient


class AgentReadiness:
    """A build-index and a tracker answer, and peers can connect."""

    def __init__(self, node: SwarmNode, tracker: TrackerClient, index: BuildIndexClient) -> None:
        self._node = node
        self._tracker = tracker
        self._index = index

    async def missing(self) -> list[str]:
        """What is missing, a line each; nothing when ready."""
        answers = await asyncio.gather(self._tracker.readiness(), self._index.alive())
        missing = [line for lines in answers for line in lines]
        if not self._node.listening:
            missing.append("the peer endpoint does not listen")
        return missing
