# SPDX-License-Identifier: Apache-2.0
"""Whether the origins take pushes to a repository: asked before a client sends anything in vain.

Where backends are configured, what matches none of them is refused. Only the origins know; the
proxy remembers for a short time what they said. When none can be asked the push goes on, and they
refuse it at its end.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import structlog

from shoal.model.errors import Denied
from shoal.origin.client import QuorumFailed, denied
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

REMEMBERED = 60.0
"""Seconds for which an answer holds."""

UNASKED = 5.0
"""Seconds after which origins that could not be asked are asked again."""

ASK_TIMEOUT = 2.0

MAX_REPOSITORIES = 10_000

log = structlog.get_logger()


class Origins(Protocol):
    """Who knows (`shoal.origin.client.OriginCluster`)."""

    async def check_push(self, namespace: str, *, deadline: Deadline) -> None: ...


class PushGate:
    """What the origins said of each repository."""

    def __init__(self, origins: Origins, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._origins = origins
        self._clock = clock
        self._open: OrderedDict[str, float] = OrderedDict()

    async def check(self, repository: str) -> None:
        """Raise `Denied` when the origins would refuse a push to the repository."""
        if self._open.get(repository, 0.0) > self._clock():
            return
        holds = REMEMBERED
        try:
            await self._origins.check_push(repository, deadline=Deadline.after(ASK_TIMEOUT))
        except CallFailed as error:
            log.info("no origin says whether pushes are taken", error=str(error))
            holds = UNASKED
        self._open.pop(repository, None)
        self._open[repository] = self._clock() + holds
        if len(self._open) > MAX_REPOSITORIES:
            self._open.popitem(last=False)


def refusal(error: CallFailed) -> Denied | None:
    """What the origins refused the push for, if that is why they did not take it."""
    if not isinstance(error, QuorumFailed):
        return None
    for failure in error.failures:
        if failure.error.code == Denied.code:
            return denied(failure.error)
    return None
