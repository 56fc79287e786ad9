# SPDX-License-Identifier: Apache-2.0
"""What is in a repository's backend and not in the records: looked up when it is asked for.

A bucket that another registry filled serves at once, and a build-index that lost its disk comes
back. What is found becomes a record that is older than every write, so that what was written or
deleted here stands, also while the backend has not been told yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import structlog

from shoal.backend.base import Backend, LinkName, Name, TagName
from shoal.backend.matching import Backends
from shoal.buildindex import metrics, writes
from shoal.buildindex.adoption import Origins, read_adoptable
from shoal.buildindex.config import ReadThroughConfig
from shoal.buildindex.lookups import Question
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.publishing import Publisher
from shoal.buildindex.store import Store
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import Unavailable
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Unreachable, remembered
from shoal.web.flights import FAILURES, Flights, Memory

MAX_POINTER = 256
"""Bytes of a tag's or link's content; a digest is shorter."""

PUSH_PATIENCE = 1.0
"""Seconds that a push waits for a backend to say that something need not be sent."""

SILENCE = 10.0
"""Seconds for which pushes do not ask a backend that did not say so in time."""

MAX_FAILURE_REMEMBERED = 60.0
"""Seconds that a backend's wish to be left alone is respected at most."""

log = structlog.get_logger()


class Storage:
    """The backends as one build-index reads them."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        neighbours: Neighbours,
        *,
        backends: Backends,
        origins: Origins,
        config: ReadThroughConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._neighbours = neighbours
        self._backends = backends
        self._origins = origins
        self._config = config
        self._clock = clock
        self._flights: Flights[Question, None] = Flights()
        self._absent: Memory[Question, bool] = Memory()
        self._failed: Memory[Question, CallFailed] = Memory(FAILURES)
        self._silent: Memory[str, bool] = Memory()

    def covers(self, repository: str) -> bool:
        """Whether what is not in the records may be in a backend."""
        matched = self._backends.for_tags(repository)
        return matched is not None and not matched.upstream

    async def bring(self, question: Question, deadline: Deadline) -> None:
        """Make a record of what is asked for, if it is in the backend and no record speaks of it.

        Raises `CallFailed` or `ApiError` when that cannot be told.
        """
        if await self._is_recorded(question):
            return
        if await self._neighbours.refresh() and await self._is_recorded(question):
            return
        if self._absent.get(question, self._clock()):
            return
        if (error := self._failed.get(question, self._clock())) is not None:
            raise remembered(error)
        await self._flights.join(question, partial(self._look, question), deadline)

    async def bring_for_push(self, question: Question, deadline: Deadline) -> None:
        """As `bring`, for a caller whom the answer only saves work, and who cannot wait for long.

        Pushes must go on while a backend is down: it is left out when it says nothing, then for a
        while before it is asked at all.
        """
        matched = self._backends.for_tags(question.repository)
        if matched is None or self._silent.get(matched.key, self._clock()):
            return
        try:
            await self.bring(question, deadline.at_most(PUSH_PATIENCE))
        except (CallFailed, Unavailable) as error:
            self._silent.keep(matched.key, True, self._clock() + SILENCE)
            log.info(
                "a push does not wait for a backend",
                repository=question.repository,
                storage=matched.backend.description,
                error=str(error),
            )

    async def stop(self) -> None:
        """End what is asked of backends."""
        await self._flights.stop()

    async def _is_recorded(self, question: Question) -> bool:
        name = (question.record_kind, question.repository, question.reference)
        return await self._store.read(lambda view: view.version(*name)) is not None

    async def _look(self, question: Question) -> None:
        try:
            found = await self._adopt(question, Deadline.after(self._config.timeout))
        except CallFailed as error:
            metrics.READ_THROUGH.labels("failed").inc()
            wait = min(error.retry_after or self._config.failure, MAX_FAILURE_REMEMBERED)
            self._failed.keep(question, remembered(error), self._clock() + wait)
            raise
        metrics.READ_THROUGH.labels("found" if found else "absent").inc()
        if not found:
            self._absent.keep(question, True, self._clock() + self._config.negative)

    async def _adopt(self, question: Question, deadline: Deadline) -> bool:
        matched = self._backends.for_tags(question.repository)
        if matched is None:
            return False
        if question.record_kind == "tag":
            return await self._adopt_tag(matched.backend, question, deadline)
        digest = Digest.parse(question.reference)
        if not await self._belongs(matched.backend, question, digest, deadline):
            return False
        if question.record_kind == "blob":
            await self._publisher.write(
                partial(writes.link_stored, repository=question.repository, digest=digest)
            )
            return True
        return await self._adopt_manifest(question.repository, None, digest, deadline)

    async def _adopt_tag(self, backend: Backend, question: Question, deadline: Deadline) -> bool:
        digest = await read_tag(backend, question.repository, question.reference, deadline)
        if digest is None:
            return False
        return await self._adopt_manifest(question.repository, question.reference, digest, deadline)

    async def _belongs(
        self, backend: Backend, question: Question, digest: Digest, deadline: Deadline
    ) -> bool:
        """Whether the repository has a digest: by a manifest that needs it, or by the backend."""
        users = await self._store.read(
            lambda view: view.referencing(question.repository, str(digest), 1)
        )
        if users:
            return True
        return await has_link(backend, question.repository, digest, question.kind, deadline)

    async def _adopt_manifest(
        self, repository: str, tag: str | None, digest: Digest, deadline: Deadline
    ) -> bool:
        held = await self._store.read(
            lambda view: view.version("manifest", repository, str(digest))
        )
        if held is not None and held[1]:
            return False  # deleted here, and its tags with it
        found = await read_adoptable(self._origins, repository, digest, deadline)
        if found is None:
            log.warning(
                "a backend names a manifest that it does not have",
                repository=repository,
                tag=tag,
                digest=str(digest),
            )
            return False
        if found.entry is None and tag is None:
            return False
        await self._publisher.write(
            partial(writes.adopt_stored, repository=repository, tag=tag, found=found)
        )
        log.info("from the backend", repository=repository, tag=tag, digest=str(digest))
        return True


async def read_tag(
    backend: Backend, repository: str, tag: str, deadline: Deadline
) -> Digest | None:
    """The digest that a backend has for a tag; raises `CallFailed` when it cannot be told."""
    name = TagName(repository, tag)
    text = await read_pointer(backend, name, deadline)
    if text is None:
        return None
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise Unreachable(
            "GET", backend.description, f"the tag {repository}:{tag} is no digest there: {error}"
        ) from error


async def read_pointer(backend: Backend, name: Name, deadline: Deadline) -> str | None:
    """The text under a name of a backend; None: it has none."""
    body = bytearray()
    try:
        async with backend.get(name, 0, MAX_POINTER, deadline=deadline) as content:
            async for chunk in content.chunks():
                body += chunk
    except NotFound:
        return None
    return body.decode("ascii", "replace").strip()


async def has_link(
    backend: Backend, repository: str, digest: Digest, kind: str, deadline: Deadline
) -> bool:
    """Whether a backend says that a manifest or blob belongs to a repository."""
    link = LinkName(repository, digest, "manifest" if kind == "manifest" else "blob")
    return await backend.stat(link, deadline=deadline) is not None
