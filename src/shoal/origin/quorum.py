# SPDX-License-Identifier: Apache-2.0
"""Making the copies of one blob: all owners at the same time, done when the write quorum is safe.

An owner that fails is replaced by the next host in ring order, and one that is known to be
unhealthy is passed over from the start. Once every host was tried, those whose failure may pass get
one more attempt. Copies still under way when the quorum is reached go on
behind the caller's back, so that the blob ends up with all its replicas.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shoal.model.digest import Digest
from shoal.model.errors import InsufficientStorage
from shoal.ring.config import OriginsConfig
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Overloaded, Unreachable

ATTEMPTS = 2
"""Per host, when its failure may pass."""

BACKOFF = 0.2
"""Seconds before a host is tried again."""

_FULL = InsufficientStorage.status

Attempt = Callable[[str], Awaitable[None]]
"""Makes the copy on one host (``host:port``); raises `CallFailed` when it could not."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that failed."""

    host: str
    error: CallFailed

    def __str__(self) -> str:
        return f"{self.host}: {self.error.detail}"


class QuorumFailed(CallFailed):
    """Fewer copies than the write quorum could be made; names each host that was tried, and why."""

    def __init__(
        self,
        digest: Digest,
        quorum: int,
        made: Sequence[str],
        failures: Sequence[Failure],
        why: str,
    ) -> None:
        self.made = tuple(made)
        self.failures = tuple(failures)
        tried = "; ".join(map(str, failures)) or "no host failed"
        copies = f" (on {', '.join(made)})" if made else ""
        super().__init__(
            "PUT",
            f"/internal/blobs/{digest}",
            f"{len(made)} of {quorum} copies for the write quorum{copies}: {why}; {tried}",
            # Nothing but a lack of room: to try again at once would bring nothing.
            status=_FULL if failures and all(f.error.status == _FULL for f in failures) else None,
        )


class Placement:
    """The copies of one blob that are being made."""

    def __init__(
        self,
        digest: Digest,
        hosts: Sequence[str],
        attempt: Attempt,
        config: OriginsConfig,
        *,
        healthy: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`hosts` are all members in ring order; the first `replicas` of them are the owners.

        Those that are not `healthy` are tried only while the write quorum cannot be had without
        them.
        """
        self._digest = digest
        self._attempt = attempt
        self._replicas = config.replicas
        self._quorum = config.write_quorum
        self._members = len(hosts)
        self._candidates = deque(host for host in hosts if healthy(host))
        self._unhealthy = deque(host for host in hosts if not healthy(host))
        self._again: deque[str] = deque()
        self._attempts: Counter[str] = Counter()
        self._running: dict[asyncio.Task[None], str] = {}
        self.made: list[str] = []
        self.failures: list[Failure] = []

    async def until_quorum(self, deadline: Deadline) -> asyncio.Task[None]:
        """Return when the write quorum has its copies; the task makes the rest of them.

        Raises `QuorumFailed` when that cannot be had any more, or not within the deadline. No
        attempt is then left running, nor is one when the caller is cancelled.
        """
        if self._members < self._quorum:
            raise self._failed(
                f"the ring has {self._members} member(s): add origins or lower origins.write_quorum"
            )
        reached = asyncio.Event()
        work = asyncio.create_task(self._work(reached), name=f"copies of {self._digest}")
        waiter = asyncio.create_task(reached.wait())
        try:
            await asyncio.wait(
                {work, waiter}, timeout=deadline.remaining(), return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            await _stop(work)
            raise
        finally:
            waiter.cancel()
        if reached.is_set():
            return work
        if work.done():
            work.result()
            raise self._failed("no host is left that could make it up")
        pending = sorted(self._running.values())
        await _stop(work)
        raise self._failed(f"the deadline passed while waiting for {', '.join(pending)}")

    def _failed(self, why: str) -> QuorumFailed:
        return QuorumFailed(self._digest, self._quorum, self.made, self.failures, why)

    async def _work(self, reached: asyncio.Event) -> None:
        try:
            self._start()
            while self._running and (reached.is_set() or self._within_reach()):
                done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._finished(task)
                self._start()
                if len(self.made) >= self._quorum:
                    reached.set()
        finally:
            await _stop(*self._running)
            self._running.clear()

    def _within_reach(self) -> bool:
        left = len(self._candidates) + len(self._unhealthy) + len(self._again)
        return len(self.made) + len(self._running) + left >= self._quorum

    def _start(self) -> None:
        while len(self.made) + len(self._running) < self._replicas:
            if self._candidates:
                host = self._candidates.popleft()
            elif self._unhealthy and len(self.made) + len(self._running) < self._quorum:
                host = self._unhealthy.popleft()
            elif self._again:
                host = self._again.popleft()
            else:
                return
            self._attempts[host] += 1
            task = asyncio.create_task(self._try(host), name=f"copy of {self._digest} to {host}")
            self._running[task] = host

    async def _try(self, host: str) -> None:
        if self._attempts[host] > 1:
            await asyncio.sleep(BACKOFF)
        await self._attempt(host)

    def _finished(self, task: asyncio.Task[None]) -> None:
        host = self._running.pop(task)
        try:
            task.result()
        except CallFailed as error:
            self.failures.append(Failure(host, error))
            if isinstance(error, Unreachable | Overloaded) and self._attempts[host] < ATTEMPTS:
                self._again.append(host)
        else:
            self.made.append(host)


async def _stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel the tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
