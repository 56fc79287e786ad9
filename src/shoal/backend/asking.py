# SPDX-License-Identifier: Apache-2.0
"""Bounds of questions to a storage: one that does not answer in time is `Unreachable`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Rejected, Unreachable


@dataclass(frozen=True, slots=True)
class Call:
    """One question: what is asked, and about what, for errors."""

    method: str
    url: str

    @asynccontextmanager
    async def within(self, deadline: Deadline) -> AsyncIterator[asyncio.Timeout]:
        """Bound what is done inside by the deadline."""
        remaining = deadline.remaining()
        if remaining <= 0:
            raise Unreachable(self.method, self.url, "not asked: the deadline has passed")
        bound = asyncio.timeout(remaining)
        try:
            async with bound:
                yield bound
        except TimeoutError as error:
            if not bound.expired():
                raise Unreachable(self.method, self.url, str(error) or "timed out") from error
            raise Unreachable(
                self.method, self.url, f"not answered within {remaining:.1f} s"
            ) from error

    def rejected(self, why: str) -> CallFailed:
        """The storage cannot do this, now or later."""
        return Rejected(self.method, self.url, why)

    def short(self, received: int, expected: int) -> CallFailed:
        """The answer ended before its end."""
        return Unreachable(
            self.method, self.url, f"the answer ended after {received} of {expected} bytes"
        )


def put_off(bound: asyncio.Timeout, when: float | None) -> None:
    """Move a bound to another time of the loop's clock; None: there is none for now."""
    # It may be over, when what is bounded goes on in another task that is being cancelled.
    with suppress(RuntimeError):
        bound.reschedule(when)
