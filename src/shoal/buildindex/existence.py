# SPDX-License-Identifier: Apache-2.0
"""Whether blobs are on the origins in enough copies: asked again until they are, or time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

import structlog

from shoal.buildindex import metrics
from shoal.buildindex.attempts import Effort
from shoal.model.digest import Digest
from shoal.model.errors import Unavailable
from shoal.origin.client import Presence
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, combined, retry_after
from shoal.web.retrying import RetriesExhausted, spent

PARALLEL_REPAIRS = 8
"""Under-replicated blobs that are copied at the same time."""

_WHAT = "dependency check"
_STAT = "/internal/blobs/stat"

log = structlog.get_logger()


class Origins(Protocol):
    """What resolution needs of the origin cluster."""

    @property
    def members(self) -> tuple[str, ...]: ...

    async def read(self, digest: Digest, *, deadline: Deadline, limit: int) -> bytes: ...

    async def stat_many(self, digests: Iterable[Digest], *, deadline: Deadline) -> Presence: ...

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int: ...


class Missing(Exception):
    """Digests that no origin had, after all attempts."""

    def __init__(self, digests: Iterable[Digest], tried: RetriesExhausted) -> None:
        super().__init__(str(tried))
        self.digests = frozenset(digests)
        self.tried = tried


class ExistenceCheck:
    """The existence of one push's dependencies; each digest is asked for until it is safe once."""

    def __init__(
        self, origins: Origins, effort: Effort, root: Digest, *, quorum: int, policy: RetryPolicy
    ) -> None:
        self._origins = origins
        self._effort = effort
        self._root = root
        self._quorum = quorum
        self._policy = policy
        self._safe: set[Digest] = set()
        self._absent: list[Digest] = []
        self._unasked: dict[str, CallFailed] = {}

    async def ensure(
        self, digests: Iterable[Digest], optional: AbstractSet[Digest] = frozenset()
    ) -> set[Digest]:
        """Return when all are on the write quorum of origins; gives the optional ones that are not.

        All members are asked before a digest counts as missing, and those that are missing are
        asked for again under the policy; an optional one counts as missing at once when all members
        say so. Raises `Missing`, `Unavailable` when that cannot be told or copies cannot be made,
        and the `CallFailed` of origins that refuse to answer.
        """
        wanted = [digest for digest in digests if digest not in self._safe]
        if not wanted:
            return set()
        dropped: set[Digest] = set()
        try:
            await self._effort.spend(
                lambda deadline: self._attempt(wanted, optional, dropped, deadline),
                what=_WHAT,
                digest=self._root,
                policy=self._policy,
                used=self._effort.used_up(_WHAT),
                outcomes=metrics.DEPENDENCY_CHECKS,
                attempts=metrics.DEPENDENCY_ATTEMPTS,
            )
        except RetriesExhausted as exhausted:
            raise self._verdict(exhausted) from exhausted
        return dropped

    async def absent(self, digests: Iterable[Digest], deadline: Deadline) -> set[Digest]:
        """Those that no origin that answers has. Asks once: it only completes an error's list."""
        wanted = [digest for digest in digests if digest not in self._safe]
        if not wanted or deadline.expired:
            return set()
        presence = await self._origins.stat_many(wanted, deadline=deadline)
        return set() if presence.unasked else set(wanted) - presence.sizes.keys()

    async def _attempt(
        self,
        wanted: Sequence[Digest],
        optional: AbstractSet[Digest],
        dropped: set[Digest],
        deadline: Deadline,
    ) -> None:
        open_ = [digest for digest in wanted if digest not in self._safe | dropped]
        self._absent = open_
        self._unasked = {}
        presence = await self._origins.stat_many(open_, deadline=deadline)
        self._unasked = dict(presence.unasked)
        self._absent = [digest for digest in open_ if digest not in presence.sizes]
        if not self._unasked:
            dropped.update(digest for digest in self._absent if digest in optional)
            self._absent = [digest for digest in self._absent if digest not in optional]
        copies = presence.copies
        self._safe.update(d for d, hosts in copies.items() if len(hosts) >= self._quorum)
        if self._absent:
            self._raise_absent()
        thin = {digest: hosts for digest, hosts in copies.items() if digest not in self._safe}
        if thin:
            await self._repair(thin, deadline)

    def _raise_absent(self) -> None:
        causes = list(self._unasked.values())
        if len(causes) < len(self._origins.members):
            causes.append(NotFound("POST", _STAT, f"no {names(self._absent)}"))
        detail = f"{len(self._absent)} blob(s) are not on the origins: {names(self._absent)}"
        if self._unasked:
            detail += f" ({_silent(self._unasked)})"
        raise combined("POST", _STAT, detail, causes) from causes[0]

    def _verdict(self, exhausted: RetriesExhausted) -> Exception:
        if not self._absent:  # the last attempt failed at the copies
            return exhausted
        tried = spent(exhausted.attempts, exhausted.seconds)
        if not self._unasked and isinstance(exhausted.last, CallFailed):
            return Missing(self._absent, exhausted)
        silent = _silent(self._unasked) or str(exhausted.last)
        return Unavailable(
            f"cannot tell whether {names(self._absent)} is on the origins, as some could not be "
            f"asked ({silent}), {tried}; try again",
            detail={
                "undecided": sorted(map(str, self._absent)),
                "attempts": exhausted.attempts,
            },
        )

    async def _repair(self, thin: dict[Digest, frozenset[str]], deadline: Deadline) -> None:
        """Bring blobs that fewer origins have than the write quorum to it."""
        slots = asyncio.Semaphore(PARALLEL_REPAIRS)
        causes: list[CallFailed] = []

        async def copy(digest: Digest, holders: frozenset[str]) -> str | None:
            async with slots:
                try:
                    copies = await self._origins.ensure_copies(digest, holders, deadline=deadline)
                except CallFailed as error:
                    causes.append(error)
                    return f"{digest} has {len(holders)} ({error.detail})"
            if copies < self._quorum:
                return f"{digest} has {copies}"
            self._safe.add(digest)
            return None

        answers = await asyncio.gather(*(copy(*item) for item in thin.items()))
        failures = [failure for failure in answers if failure]
        log.info("dependencies replicated", blobs=len(thin), failed=len(failures))
        if failures:
            waits = [again.after for cause in causes if (again := retry_after(cause)) is not None]
            raise Unavailable(
                f"{len(failures)} blob(s) of the manifest are on fewer origins than the write "
                f"quorum of {self._quorum}, and could not be copied: "
                f"{'; '.join(failures[:8])}; try again",
                retry_after=round(max((wait or 0 for wait in waits), default=0)),
            ) from (causes[0] if causes else None)


def names(digests: Sequence[Digest]) -> str:
    """The first few digests, and how many more there are."""
    more = f" and {len(digests) - 4} more" if len(digests) > 4 else ""
    return ", ".join(map(str, digests[:4])) + more


def _silent(unasked: dict[str, CallFailed]) -> str:
    return "; ".join(f"{host}: {why.detail}" for host, why in unasked.items())
