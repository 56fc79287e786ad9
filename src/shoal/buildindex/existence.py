# SPDX-License-Identifier: Apache-2.0
"""Whether blobs are in their repository, and on the origins in enough copies.

What is not is asked for again until it is, or time is up.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

import structlog

from shoal.buildindex import metrics
from shoal.buildindex.attempts import Effort
from shoal.buildindex.membership import MembershipCheck
from shoal.model.digest import Digest
from shoal.model.errors import Unavailable
from shoal.origin.client import Presence
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, combined, retry_after
from shoal.web.retrying import RetriesExhausted, spent

PARALLEL_REPAIRS = 8
"""Under-replicated blobs that are copied at the same time."""

PARALLEL_QUESTIONS = 16
"""Blobs that a backend is asked for at the same time."""

_WHAT = "dependency check"
_STAT = "/internal/blobs/stat"
_LOOKUP = "/internal/lookup"

log = structlog.get_logger()


class Origins(Protocol):
    """What resolution needs of the origin cluster."""

    @property
    def members(self) -> tuple[str, ...]: ...

    async def read(
        self, digest: Digest, *, deadline: Deadline, limit: int, namespace: str = ""
    ) -> bytes: ...

    async def stat(
        self, digest: Digest, *, deadline: Deadline, keep: bool = False, namespace: str = ""
    ) -> int | None: ...

    async def stat_many(
        self, digests: Iterable[Digest], *, deadline: Deadline, keep: bool = False
    ) -> Presence: ...

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int: ...


class Missing(Exception):
    """Digests that are not in the repository, or that no origin had, after all attempts."""

    def __init__(self, digests: Iterable[Digest], tried: RetriesExhausted) -> None:
        super().__init__(str(tried))
        self.digests = frozenset(digests)
        self.tried = tried


class ExistenceCheck:
    """The existence of one push's dependencies; each digest is asked for until it is safe once.

    What is not in the repository counts as missing wherever else it is, and the origins are not
    asked for it: nobody learns from a push what other repositories have.
    """

    def __init__(
        self,
        origins: Origins,
        members: MembershipCheck,
        effort: Effort,
        root: Digest,
        *,
        quorum: int,
        policy: RetryPolicy,
        backed: bool = False,
    ) -> None:
        """`backed`: what no origin has may be in the repository's backend, and is safe there."""
        self.sizes: dict[Digest, int] = {}
        """Bytes of what was found on the origins."""

        self._origins = origins
        self._members = members
        self._effort = effort
        self._root = root
        self._quorum = quorum
        self._policy = policy
        self._backed = backed
        self._safe: set[Digest] = set()
        self._absent: list[Digest] = []
        self._outside: set[Digest] = set()
        self._asked = False
        self._unasked: dict[str, CallFailed] = {}

    async def ensure(
        self, digests: Iterable[Digest], optional: AbstractSet[Digest] = frozenset()
    ) -> set[Digest]:
        """Return when all are on the write quorum of origins; gives the optional ones that are not.

        All origins are asked before a digest counts as missing, and those that are missing are
        asked for again under the policy; an optional one counts as missing at once when it is not
        in the repository, or all origins say so. They are kept from being swept as they are asked
        for. Raises `Missing`, `Unavailable` when that cannot be told or copies cannot be made, and
        the `CallFailed` of origins that refuse to answer.
        """
        wanted = self._unsafe(digests)
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
        """Those that are not in the repository, or that no origin has when all of them answer.

        Asks once: it only completes an error's list.
        """
        wanted = self._unsafe(digests)
        if not wanted or deadline.expired:
            return set()
        outside = await self._members.absent(wanted)
        inside = [digest for digest in wanted if digest not in outside]
        presence = await self._origins.stat_many(inside, deadline=deadline)
        return outside if presence.unasked else set(wanted) - presence.sizes.keys()

    def _unsafe(self, digests: Iterable[Digest]) -> list[Digest]:
        listed = list(digests)
        strangers = self._members.open(listed)
        return [digest for digest in listed if digest not in self._safe or digest in strangers]

    async def _attempt(
        self,
        wanted: Sequence[Digest],
        optional: AbstractSet[Digest],
        dropped: set[Digest],
        deadline: Deadline,
    ) -> None:
        open_ = [digest for digest in self._unsafe(wanted) if digest not in dropped]
        self._absent, self._unasked = open_, {}
        self._asked, self._outside = False, set()
        outside = await self._members.absent(open_)
        self._outside = outside - optional
        inside = [digest for digest in open_ if digest not in outside]
        presence = await self._origins.stat_many(inside, deadline=deadline, keep=True)
        self._asked, self._unasked = True, dict(presence.unasked)
        lost = [digest for digest in inside if digest not in presence.sizes]
        stored = await self._stored(lost, deadline)
        self._safe.update(stored)
        sizes = {**presence.sizes, **stored}
        self.sizes.update(sizes)
        gone = outside if self._unasked else set(open_) - sizes.keys()
        dropped.update(gone & optional)
        self._absent = [d for d in open_ if d not in sizes and d not in dropped]
        copies = presence.copies
        self._safe.update(d for d, hosts in copies.items() if len(hosts) >= self._quorum)
        if self._absent:
            self._raise_absent()
        thin = {digest: hosts for digest, hosts in copies.items() if digest not in self._safe}
        if thin:
            await self._repair(thin, deadline)

    async def _stored(self, digests: Sequence[Digest], deadline: Deadline) -> dict[Digest, int]:
        """Sizes of those that the repository's backend has, though no origin does."""
        if not self._backed or not digests:
            return {}
        slots = asyncio.Semaphore(PARALLEL_QUESTIONS)

        async def ask(digest: Digest) -> int | None:
            async with slots:
                return await self._origins.stat(
                    digest, deadline=deadline, namespace=self._members.repository
                )

        sizes = await asyncio.gather(*map(ask, digests))
        found = zip(digests, sizes, strict=True)
        return {digest: size for digest, size in found if size is not None}

    def _raise_absent(self) -> None:
        causes = list(self._unasked.values())
        details = []
        if self._outside:
            repository, outside = self._members.repository, sorted(self._outside)
            details.append(f"{len(outside)} are not in {repository}: {names(outside)}")
            causes.append(NotFound("POST", _LOOKUP, f"{repository} has no {names(outside)}"))
        lost = [digest for digest in self._absent if digest not in self._outside]
        if lost:
            details.append(f"{len(lost)} are not on the origins: {names(lost)}")
            if len(self._unasked) < len(self._origins.members):
                causes.append(NotFound("POST", _STAT, f"no {names(lost)}"))
        detail = f"of the blobs, {', and '.join(details)}"
        if self._unasked:
            detail += f" ({_silent(self._unasked)})"
        raise combined("POST", _STAT, detail, causes) from causes[0]

    def _verdict(self, exhausted: RetriesExhausted) -> Exception:
        if not self._absent:  # the last attempt failed at the copies
            return exhausted
        tried = spent(exhausted.attempts, exhausted.seconds)
        if self._asked and not self._unasked:
            return Missing(self._absent, exhausted)
        if self._outside:
            return Missing(self._outside, exhausted)
        silent = _silent(self._unasked) or str(exhausted.last)
        return Unavailable(
            f"cannot tell whether {names(self._absent)} is there, as some could not be asked "
            f"({silent}), {tried}; try again",
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
                retry_after=max((math.ceil(wait or 1) for wait in waits), default=1),
            ) from (causes[0] if causes else None)


def names(digests: Sequence[Digest]) -> str:
    """The first few digests, and how many more there are."""
    more = f" and {len(digests) - 4} more" if len(digests) > 4 else ""
    return ", ".join(map(str, digests[:4])) + more


def _silent(unasked: dict[str, CallFailed]) -> str:
    return "; ".join(f"{host}: {why.detail}" for host, why in unasked.items())
