# SPDX-License-Identifier: Apache-2.0
"""Where an answer is looked for that the records do not give: in a backend, or at an upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from shoal.buildindex.lookups import Question
from shoal.buildindex.storage import Storage
from shoal.buildindex.store import Store
from shoal.buildindex.upstreams import Held, Upstreams
from shoal.web.deadline import Deadline

PARALLEL = 16
"""Questions of one caller that are asked at the same time."""


class Elsewhere:
    """Backends and upstreams as one; a repository has one of them, or neither."""

    def __init__(self, store: Store, storage: Storage, upstreams: Upstreams) -> None:
        self._store = store
        self._storage = storage
        self._upstreams = upstreams

    def refuse_writes(self, repository: str) -> None:
        """Raise `Denied` for a repository of an upstream."""
        self._upstreams.refuse_writes(repository)

    async def open_questions(self, asked: Sequence[tuple[Question, bool]]) -> list[Question]:
        """Those that the records alone do not answer; with each, whether they knew of it.

        A live record of what they did not know was written since they were looked at: the question
        is open, for the answer is to be looked up again.
        """
        doubtful = [entry for entry in asked if self._is_doubtful(*entry)]
        if not doubtful:
            return []
        names = [(q.record_kind, q.repository, q.reference) for q, _ in doubtful]
        held = await self._store.read(lambda view: [view.version(*name) for name in names])
        return [
            question
            for (question, known), record in zip(doubtful, held, strict=True)
            if not self._is_settled(question, known, record)
        ]

    def _is_doubtful(self, question: Question, known: bool) -> bool:
        if self._upstreams.remote(question.repository) is not None:
            return not known or question.record_kind == "tag"
        return not known and self._storage.covers(question.repository)

    def _is_settled(self, question: Question, known: bool, held: Held) -> bool:
        if held is not None and not held[1] and not known:
            return False
        remote = self._upstreams.remote(question.repository)
        if remote is None:
            return held is not None
        return self._upstreams.is_settled(remote, question, held)

    async def bring(
        self, questions: Collection[Question], deadline: Deadline, *, rely: bool = False
    ) -> None:
        """Have the records answer; raises what kept one of the questions from being asked.

        With `rely` the caller is about to push: what a backend does not tell soon is sent again,
        without harm.
        """
        slots = asyncio.Semaphore(PARALLEL)

        async def one(question: Question) -> None:
            remote = self._upstreams.remote(question.repository)
            async with slots:
                if remote is not None:
                    await self._upstreams.bring(remote, question, deadline)
                elif rely:
                    await self._storage.bring_for_push(question, deadline)
                elif self._storage.covers(question.repository):
                    await self._storage.bring(question, deadline)

        outcomes = await asyncio.gather(*map(one, questions), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def stop(self) -> None:
        """End what is under way."""
        await asyncio.gather(self._storage.stop(), self._upstreams.stop())
