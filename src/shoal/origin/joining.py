# SPDX-License-Identifier: Apache-2.0
"""Whether this origin is a member of the ring that its list of origins describes."""

from __future__ import annotations

import asyncio

from shoal.origin.config import OriginConfig
from shoal.web.hosts import HostList
from shoal.web.process import Stop


class Joining:
    """Waits at the start until the list names this origin, and gives up when it does not.

    An origin under another name than its list's would keep blobs that nobody looks for there. Once
    it has seen itself it stays, whatever the DNS says later.
    """

    def __init__(self, config: OriginConfig, listed: HostList) -> None:
        self._member = config.member
        self._timeout = config.join_timeout
        self._listed = listed
        self._seen = asyncio.Event()
        self.failure = ""
        """Why this origin cannot go on; empty as long as it can."""
        listed.watch(lambda _, now: self._look(now))
        self._look(listed.hosts)

    def _look(self, hosts: tuple[str, ...]) -> None:
        if self._member in hosts:
            self._seen.set()

    def missing(self) -> list[str]:
        """What a readiness check says; nothing once the origin has seen itself."""
        return [] if self._seen.is_set() else [self._why()]

    async def run(self, stop: Stop) -> None:
        """Wait for as long as the config allows; then stop the process, with `failure` set."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._seen.wait()
        except TimeoutError:
            self.failure = f"cannot start: {self._why()}"
            stop.set()

    def _why(self) -> str:
        if not self._listed.hosts:
            return self._listed.why_empty()
        return (
            f"this origin calls itself {self._member}, and {self._listed.source} has "
            f"{', '.join(self._listed.hosts)}: set name to what the list calls it"
        )
