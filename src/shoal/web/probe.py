# SPDX-License-Identifier: Apache-2.0
"""Ask several hosts whether they are alive, for no longer than it takes to know enough."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed


async def silent(
    http: HttpClient,
    hosts: Sequence[str],
    path: str,
    *,
    enough: int,
    timeout: float,
) -> dict[str, str]:
    """Nothing once `enough` hosts have answered 200; else why each of the others has not.

    Within `timeout` seconds. One host that hangs costs nothing as long as enough others answer.
    """
    deadline = Deadline.after(timeout)
    why: dict[str, str] = {}

    async def ask(host: str) -> bool:
        try:
            await http.call("GET", http.url(host, path), deadline=deadline)
        except CallFailed as error:
            why[host] = error.detail
            return False
        return True

    asking = {asyncio.create_task(ask(host)) for host in hosts}
    answered = 0
    try:
        for asked in asyncio.as_completed(asking):
            answered += await asked
            if answered >= enough:
                return {}
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return why
