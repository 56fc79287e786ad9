# SPDX-License-Identifier: Apache-2.0
"""Many small questions to one host, in few requests.

While a request is under way, those who ask wait for the next one. So an answer is never older than
its question, and one request at a time carries whatever the callers come up with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Unreachable

Q = TypeVar("Q", bound=Hashable)
A = TypeVar("A")

Send = Callable[[Sequence[Q], Deadline], Awaitable[Sequence[A]]]
"""One request to the host; the answers come in the order of the questions. Raises `CallFailed`."""


@dataclass(slots=True, eq=False)
class _Asked(Generic[Q, A]):
    """One caller."""

    questions: Sequence[Q]
    answers: asyncio.Future[list[A]]


class Batches(Generic[Q, A]):
    """Puts together the questions that are asked of one URL by POST."""

    def __init__(self, send: Send[Q, A], url: str, *, most: int, timeout: float) -> None:
        """`most`: questions in one request; `timeout`: seconds that one request may take.

        A request goes on when those who caused it leave: each of them waits as long as it likes,
        and only `send` learns that the host is silent.
        """
        self._send = send
        self._url = url
        self._most = most
        self._timeout = timeout
        self._waiting: dict[_Asked[Q, A], None] = {}
        """Those for whom the next request is, in the order in which they came."""
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q, deadline: Deadline) -> A:
        """The host's answer, given after this was called; raises as `ask_all` does."""
        return (await self.ask_all([question], deadline))[0]

    async def ask_all(self, questions: Sequence[Q], deadline: Deadline) -> list[A]:
        """The host's answers to at most `most` questions, given after this was called.

        Raises what the request raises, and `Unreachable` at the deadline, or when the request that
        this waited behind did not reach the host. Who leaves early harms nobody else.
        """
        if len(questions) > self._most:
            raise ValueError(f"{len(questions)} questions at once, at most {self._most} may be")
        asked = _Asked(questions, asyncio.get_running_loop().create_future())
        self._waiting[asked] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"questions to {self._url}")
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asked.answers
        except TimeoutError as error:
            raise Unreachable("POST", self._url, "no answer in time") from error
        finally:
            self._waiting.pop(asked, None)

    async def _run(self) -> None:
        try:
            while callers := self._next_batch():
                await self._answer(callers)
        finally:
            self._task = None

    def _next_batch(self) -> list[_Asked[Q, A]]:
        """Those who wait, as many as one request has room for; they wait no more."""
        questions: set[Q] = set()
        batch = []
        for asked in self._waiting:
            new = {question for question in asked.questions if question not in questions}
            if len(questions) + len(new) <= self._most:
                questions |= new
                batch.append(asked)
        for asked in batch:
            del self._waiting[asked]
        return batch

    async def _answer(self, callers: Sequence[_Asked[Q, A]]) -> None:
        questions = list(dict.fromkeys(chain.from_iterable(asked.questions for asked in callers)))
        # Not their deadlines: who is in a hurry leaves, and that says nothing of the host.
        deadline = Deadline.after(self._timeout)
        try:
            answers = dict(zip(questions, await self._send(questions, deadline), strict=True))
        except CallFailed as error:
            _fail(callers, error)
            if isinstance(error, Unreachable):
                # Those who waited behind it shall not wait for a host that hangs once more.
                _fail(self._waiting, error)
                self._waiting.clear()
        else:
            for asked in callers:
                if not asked.answers.done():
                    asked.answers.set_result([answers[question] for question in asked.questions])


def _fail(callers: Iterable[_Asked[Q, A]], error: CallFailed) -> None:
    for asked in callers:
        if not asked.answers.done():
            asked.answers.set_exception(error)
