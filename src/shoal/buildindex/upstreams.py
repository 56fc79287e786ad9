# SPDX-License-Identifier: Apache-2.0
"""Repositories of upstream registries: their tags are confirmed there, the rest is adopted once.

Nobody pushes to these repositories here, so what the upstream says is what holds; a tag's record is
written anew each time that the upstream confirms it. Manifests and blobs are named by their
digests: what was adopted once is not asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import structlog

from shoal.backend.base import Backend
from shoal.backend.matching import Backends
from shoal.backend.upstreams import DEFAULT, Remote, UpstreamNames
from shoal.buildindex import metrics, writes
from shoal.buildindex.adoption import Origins, read_adoptable
from shoal.buildindex.clock import Version
from shoal.buildindex.lookups import Question
from shoal.buildindex.publishing import Publisher
from shoal.buildindex.revalidation import Decision, confirmed, decide, may_be_stale
from shoal.buildindex.storage import MAX_FAILURE_REMEMBERED, has_link, read_tag
from shoal.buildindex.store import Store
from shoal.model.digest import Digest
from shoal.model.errors import Denied
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected, Unreachable, remembered
from shoal.web.flights import FAILURES, Flights, Memory

PATIENCE = 5.0
"""Seconds that an upstream has to confirm a tag when there is an older digest to go by."""

Held = tuple[Version, bool] | None
"""The version of a record, and whether it is a deletion."""

log = structlog.get_logger()


class Upstreams:
    """The upstreams as one build-index asks them."""

    def __init__(
        self,
        names: UpstreamNames,
        store: Store,
        publisher: Publisher,
        backends: Backends,
        origins: Origins,
        *,
        timeout: float,
        failure: float,
        renew_after_ms: int,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`timeout`: seconds for all that one question to an upstream takes, the manifest included.

        `failure`: seconds for which a failure is remembered where the upstream does not say.
        """
        self._names = names
        self._store = store
        self._publisher = publisher
        self._backends = backends
        self._origins = origins
        self._timeout = timeout
        self._failure = failure
        self._renew_after_ms = renew_after_ms
        self._clock = clock
        self._wall_ms = wall_ms
        self._flights: Flights[Question, None] = Flights()
        self._absent: Memory[Question, bool] = Memory()
        self._failed: Memory[Question, CallFailed] = Memory(FAILURES)

    def remote(self, repository: str) -> Remote | None:
        """What a repository is at its upstream; None: it is one of this cluster's own."""
        return self._names.remote(repository)

    def refuse_writes(self, repository: str) -> None:
        """Raise `Denied` for a repository of an upstream."""
        remote = self._names.remote(repository)
        if remote is not None:
            raise Denied(
                f"{repository} holds what {remote.registry} has in {remote.repository}, and is "
                f"not written here: push to {remote.registry}, or to another repository"
            )

    def is_settled(self, remote: Remote, question: Question, held: Held) -> bool:
        """Whether the records answer a question now, or what is remembered here."""
        if question.record_kind != "tag":
            if held is not None and not held[1]:
                return True
            return bool(self._absent.get(question, self._clock()))
        known = confirmed(held, self._wall_ms())
        if decide(known, remote.config) is Decision.SERVE:
            return True
        if self._absent.get(question, self._clock()):
            return True
        failed = self._failed.get(question, self._clock()) is not None
        return failed and may_be_stale(known, remote.config)

    async def bring(self, remote: Remote, question: Question, deadline: Deadline) -> None:
        """Bring the records up to what the upstream says; one question for all who ask at once.

        On return the records answer, if need be with what the upstream said earlier. Raises
        `CallFailed` or `ApiError` when it could not be asked and they say nothing.
        """
        held = await self._held(question)
        if self.is_settled(remote, question, held):
            self._warn_if_stale(remote, question, held)
            return
        if (error := self._failed.get(question, self._clock())) is not None:
            raise _said(remote, question, remembered(error))
        await self._flights.join(question, partial(self._ask, remote, question), deadline)

    async def stop(self) -> None:
        """End what is asked of upstreams."""
        await self._flights.stop()

    async def _held(self, question: Question) -> Held:
        name = (question.record_kind, question.repository, question.reference)
        return await self._store.read(lambda view: view.version(*name))

    async def _ask(self, remote: Remote, question: Question) -> None:
        held = await self._held(question)
        known = confirmed(held, self._wall_ms())
        stale_will_do = question.record_kind == "tag" and may_be_stale(known, remote.config)
        deadline = Deadline.after(self._timeout)
        try:
            found = await self._answer(
                question, deadline.at_most(PATIENCE) if stale_will_do else deadline, deadline
            )
        except CallFailed as error:
            self._remember_failure(question, error)
            if not stale_will_do:
                raise _said(remote, question, error) from error
            log.warning(
                "an upstream cannot be asked; going by what it said before",
                tag=str(question),
                age_s=None if known is None else round(known.age),
                error=str(error),
            )
            metrics.STALE_SERVED.labels(_label(remote)).inc()
            return
        if not found:
            await self._gone(remote, question, held)

    def _remember_failure(self, question: Question, error: CallFailed) -> None:
        if question.record_kind == "tag":
            metrics.REVALIDATIONS.labels("failed").inc()
        wait = min(error.retry_after or self._failure, MAX_FAILURE_REMEMBERED)
        self._failed.keep(question, remembered(error), self._clock() + wait)

    async def _gone(self, remote: Remote, question: Question, held: Held) -> None:
        self._absent.keep(question, True, self._clock() + remote.config.negative)
        if question.record_kind != "tag":
            return
        metrics.REVALIDATIONS.labels("gone").inc()
        if held is not None:
            await self._publisher.write(
                partial(
                    writes.confirm_tag,
                    repository=question.repository,
                    tag=question.reference,
                    digest=None,
                )
            )

    async def _answer(self, question: Question, confirmation: Deadline, deadline: Deadline) -> bool:
        """Ask, and write down what is so; False: there is no such thing.

        `confirmation` is for what the upstream says of a name, `deadline` for all.
        """
        if question.record_kind == "tag":
            backend = self._backend_of_tags(question.repository)
            digest = await read_tag(backend, question.repository, question.reference, confirmation)
            if digest is None:
                return False
            await self._point(question, digest, deadline)
            return True
        digest = Digest.parse(question.reference)
        if not await self._belongs(question, digest, deadline):
            return False
        if question.record_kind == "blob":
            await self._publisher.write(
                partial(
                    writes.link,
                    repository=question.repository,
                    digest=digest,
                    renew_before=self._renew_before(),
                )
            )
            return True
        return await self._adopt(question.repository, None, digest, deadline)

    def _backend_of_tags(self, repository: str) -> Backend:
        matched = self._backends.for_tags(repository)
        if matched is None:  # the two are made of one config
            raise NotFound("GET", repository, "it is no upstream's repository")
        return matched.backend

    async def _point(self, question: Question, digest: Digest, deadline: Deadline) -> None:
        """Have the tag point to what the upstream says.

        Raises `CallFailed` when that cannot be had: the tag is not gone for that, it was named.
        """
        repository, tag = question.repository, question.reference
        before, complete = await self._store.read(
            lambda view: (view.tag(repository, tag), view.has_manifest(repository, str(digest)))
        )
        if complete:
            await self._publisher.write(
                partial(writes.confirm_tag, repository=repository, tag=tag, digest=str(digest))
            )
        elif not await self._adopt(repository, tag, digest, deadline):
            raise Unreachable(
                "GET", str(question), f"its registry says that it is {digest}, and has no such one"
            )
        moved = before != str(digest)
        metrics.REVALIDATIONS.labels("moved" if moved else "unchanged").inc()
        if moved:
            log.info("from the upstream", tag=str(question), digest=str(digest), before=before)

    async def _belongs(self, question: Question, digest: Digest, deadline: Deadline) -> bool:
        """Whether the repository has a digest: by a manifest adopted here, or by the upstream."""
        users = await self._store.read(
            lambda view: view.referencing(question.repository, str(digest), 1)
        )
        if users:
            return True
        backend = self._backend_of_tags(question.repository)
        return await has_link(backend, question.repository, digest, question.kind, deadline)

    async def _adopt(
        self, repository: str, tag: str | None, digest: Digest, deadline: Deadline
    ) -> bool:
        found = await read_adoptable(self._origins, repository, digest, deadline)
        if found is None or (found.entry is None and tag is None):
            return False
        await self._publisher.write(
            partial(
                writes.adopt_confirmed,
                repository=repository,
                tag=tag,
                found=found,
                renew_before=self._renew_before(),
            )
        )
        return True

    def _renew_before(self) -> int:
        return self._wall_ms() - self._renew_after_ms

    def _warn_if_stale(self, remote: Remote, question: Question, held: Held) -> None:
        known = confirmed(held, self._wall_ms())
        if question.record_kind == "tag" and decide(known, remote.config) is Decision.ASK:
            metrics.STALE_SERVED.labels(_label(remote)).inc()


def _label(remote: Remote) -> str:
    """What it is called in metrics: clients could name registries without end."""
    return remote.registry if remote.configured else DEFAULT


def _said(remote: Remote, question: Question, error: CallFailed) -> Exception:
    """What a failure of an upstream is to those who ask."""
    if isinstance(error, Rejected):
        return Denied(f"{remote.registry} refuses {question}: {error}")
    return error
