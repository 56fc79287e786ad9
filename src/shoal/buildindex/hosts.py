# SPDX-License-Identifier: Apache-2.0
"""Calls to the build-indexes of the cluster: whom to ask, and whom next when that fails."""

from __future__ import annotations

import errno
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from shoal.model.errors import (
    ApiError,
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    NameInvalid,
    NameUnknown,
    SourceFailed,
    TagInvalid,
    Unsupported,
)
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import HostsConfig
from shoal.ring.health import Health
from shoal.ring.rendezvous import owners
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable
from shoal.web.hosts import HostList
from shoal.web.retrying import RetriesExhausted, Retry, retrying

_ERRORS: dict[str, type[ApiError]] = {
    error.code: error
    for error in (
        BlobUnknown,
        Denied,
        DigestInvalid,
        ManifestBlobUnknown,
        ManifestInvalid,
        NameInvalid,
        NameUnknown,
        TagInvalid,
        Unsupported,
    )
}
"""Answers of the build-index that are the caller's own answers to its client."""

_NOT_CONNECTED = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}
)
"""Failures after which a request certainly did not arrive."""

T = TypeVar("T")

log = structlog.get_logger()


class IndexHosts:
    """All build-indexes as one: those that failed lately are asked last."""

    def __init__(
        self,
        http: HttpClient,
        config: HostsConfig,
        *,
        retry: RetryPolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retry` is for what no build-index took."""
        self.listed = HostList(config, "build_index")
        self._http = http
        self._retry = retry
        self._clock = clock
        self._rng = random.Random()
        self._health = Health()
        self._suspects: set[str] = set()

    @property
    def hosts(self) -> tuple[str, ...]:
        """All of them, as they are now."""
        return self.listed.hosts

    async def persistently(
        self,
        method: str,
        path: str,
        attempt: Callable[[Deadline], Awaitable[T]],
        deadline: Deadline,
    ) -> T:
        """Try again while no build-index can be reached.

        What one of them answers is final: it has spent its own retries on it. Raises that answer,
        an `ApiError` or a `CallFailed`; `Unreachable` when there was none to the end.
        """

        async def once(within: Deadline) -> T | ApiError | CallFailed:
            try:
                return await attempt(within)
            except Unreachable:
                raise
            except (ApiError, CallFailed) as answer:
                return answer

        try:
            answer = await retrying(
                once, policy=self._retry, deadline=deadline, rng=self._rng, on_retry=_log_retry
            )
        except RetriesExhausted as exhausted:
            raise Unreachable(method, path, exhausted.message) from exhausted
        if isinstance(answer, ApiError | CallFailed):
            raise answer
        return answer

    async def ask_any(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        within: float = math.inf,
        **request: Any,
    ) -> Answer:
        """The answer of the first build-index that gives one; raises `ApiError` or `CallFailed`.

        `within`: seconds that each of them has at most.
        """

        async def ask(host: str, share: Deadline) -> Answer:
            return await self.call(host, method, path, share.at_most(within), **request)

        answer = await self.first_to_have_it(method, path, ask, deadline)
        if answer is None:
            raise self._nobody(method, path)
        return answer

    async def first_to_have_it(
        self,
        method: str,
        path: str,
        ask: Callable[[str, Deadline], Awaitable[T | None]],
        deadline: Deadline,
    ) -> T | None:
        """What the first build-index answers that knows; None when those that answer do not.

        One that is known to be down is not asked once another one does not know.
        """
        unknown = False
        last: CallFailed = self._nobody(method, path)
        hosts = self._ordered()
        for position, host in enumerate(hosts):
            if unknown and host in self._suspects:
                continue
            try:
                answer = await ask(host, _share(deadline, hosts, position))
            except (NotFound, Rejected) as error:
                _raise_answer(error)
                last = error
            except (Unreachable, Overloaded) as error:
                last = error
            else:
                if answer is not None:
                    return answer
                unknown = True
        if unknown:
            return None
        raise last

    async def first_to_answer(
        self,
        key: str,
        method: str,
        path: str,
        ask: Callable[[str, Deadline], Awaitable[T]],
        deadline: Deadline,
    ) -> T:
        """What the first build-index answers, whatever it is.

        Everyone who has this key asks in the same order, but for hosts that failed them lately: so
        what is known or under way at one of them is shared. That a backend or an upstream failed is
        an answer, too: another build-index would only ask it once more.
        """
        last: CallFailed = self._nobody(method, path)
        hosts = self._health.order(owners(key, self.hosts), self._clock())
        for position, host in enumerate(hosts):
            try:
                return await ask(host, _share(deadline, hosts, position))
            except (NotFound, Rejected) as error:
                _raise_answer(error)
                last = error
            except (Unreachable, Overloaded) as error:
                if error.code == SourceFailed.code:
                    raise
                last = error
        raise last

    async def call(
        self, host: str, method: str, path: str, deadline: Deadline, **request: Any
    ) -> Answer:
        """Ask this one, and remember how that went. Raises `CallFailed`."""
        try:
            answer = await self._http.call(
                method, self._http.url(host, path), deadline=deadline, **request
            )
        except (Unreachable, Overloaded) as error:
            if error.code == SourceFailed.code:
                self._answered(host)
            else:
                self._health.failed(host, self._clock())
                self._suspects.add(host)
            raise
        except (NotFound, Rejected):
            self._answered(host)
            raise
        self._answered(host)
        return answer

    def _answered(self, host: str) -> None:
        self._health.ok(host, self._clock())
        self._suspects.discard(host)

    def _nobody(self, method: str, path: str) -> CallFailed:
        return Unreachable(method, path, self.listed.why_empty())

    def _ordered(self) -> list[str]:
        return self._health.order(self.hosts, self._clock())


def may_have_arrived(error: Unreachable) -> bool:
    """Whether a request that was not answered may have been carried out."""
    cause = error.__cause__
    return cause is not None and getattr(cause, "errno", None) not in _NOT_CONNECTED


def _raise_answer(error: CallFailed) -> None:
    """Raise what the build-index said, if it is an answer to the caller's question."""
    known = _ERRORS.get(error.code or "")
    if known is not None:
        said = error.body["errors"][0]
        raise known(str(said.get("message", error.detail)), detail=said.get("detail")) from error


def _share(deadline: Deadline, hosts: list[str], position: int) -> Deadline:
    """An equal part of the time left for each host that may still have to be asked."""
    return deadline.at_most(deadline.remaining() / (len(hosts) - position))


def _log_retry(retry: Retry) -> None:
    log.warning(
        "no build-index took the request, will retry",
        attempt=retry.attempt,
        wait_s=round(retry.wait, 3),
        error=str(retry.error),
    )
