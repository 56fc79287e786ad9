# SPDX-License-Identifier: Apache-2.0
"""Asking several hosts the same question, until what they said is enough."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from shoal.web.failures import CallFailed, NotFound

T = TypeVar("T")


class Poll(Generic[T]):
    """What the hosts that were asked said so far."""

    def __init__(self) -> None:
        self.found: dict[str, T] = {}
        """Hosts that have it, in the order of their answers."""

        self.absent: list[str] = []
        """Hosts that answered "not there"."""

        self.unasked: dict[str, CallFailed] = {}
        """Hosts that could not be asked, and why."""

        self.overtaken: list[str] = []
        """Hosts that were still silent after `stagger` seconds, when others had said enough."""

    async def ask(
        self,
        hosts: Sequence[str],
        question: Callable[[str], Awaitable[T]],
        *,
        enough: Callable[[Poll[T]], float | None],
        stagger: float = 0.0,
    ) -> None:
        """Ask the hosts; add what they answer.

        `question` returns what the host has, or raises `NotFound` (it is not there) or another
        `CallFailed` (could not be asked). `enough` is called after each answer: None to go on, or
        the seconds that the hosts still being asked may take. With `stagger`, the next host is
        asked only when one has answered without having it, or is silent for that many seconds;
        without it, all at once. No call of `question` is left waiting.
        """
        clock = asyncio.get_running_loop().time
        waiting = deque(hosts)
        asking: dict[asyncio.Future[T], str] = {}
        started: dict[str, float] = {}
        next_start = clock()
        until: float | None = None
        try:
            while until is None or clock() < until:
                while waiting and until is None and (not asking or clock() >= next_start):
                    host = waiting.popleft()
                    asking[asyncio.ensure_future(question(host))] = host
                    started[host] = clock()
                    next_start = started[host] + stagger
                if not asking:
                    return
                wake = until if until is not None else next_start if waiting else None
                done, _ = await asyncio.wait(
                    asking,
                    timeout=None if wake is None else max(0.0, wake - clock()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    if not self._heard(asking.pop(task), task):
                        next_start = clock()
                patience = enough(self)
                if patience is not None:
                    until = min(until or clock() + patience, clock() + patience)
            if stagger:
                late = clock() - stagger
                self.overtaken += [host for host in asking.values() if started[host] <= late]
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _heard(self, host: str, task: asyncio.Future[T]) -> bool:
        """Note the answer; True when the host has it."""
        try:
            self.found[host] = task.result()
        except NotFound:
            self.absent.append(host)
            return False
        except CallFailed as error:
            self.unasked[host] = error
            return False
        return True

    def said(self) -> str:
        """Every host and what it said, for an error message."""
        parts = [f"{host}: not there" for host in self.absent]
        parts += [f"{host}: {error.detail}" for host, error in self.unasked.items()]
        return "; ".join(parts) or "no host was asked"
