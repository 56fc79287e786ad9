# SPDX-License-Identifier: Apache-2.0
"""Whether enough origins answer for a push to be taken."""

from __future__ import annotations

import asyncio

from shoal.ring.config import OriginsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

TIMEOUT = 2.0


async def origins_missing(http: HttpClient, config: OriginsConfig) -> list[str]:
    """The origins that do not answer, if the rest is fewer than the write quorum; else nothing."""

    async def why_silent(host: str) -> str | None:
        try:
            await http.call("GET", f"http://{host}/health", deadline=Deadline.after(TIMEOUT))
        except CallFailed as error:
            return f"origin {host}: {error.detail}"
        return None

    answers = await asyncio.gather(*(why_silent(host) for host in config.hosts))
    silent = [answer for answer in answers if answer is not None]
    answering = len(answers) - len(silent)
    if answering >= config.write_quorum:
        return []
    return [f"{answering} origin(s) answer, the write quorum is {config.write_quorum}", *silent]
