# SPDX-License-Identifier: Apache-2.0
"""How other services call the build-index."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec
import structlog

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import (
    ApiError,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    TagInvalid,
)
from shoal.model.manifest import IndexChildren
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import HostsConfig
from shoal.ring.health import Health
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable
from shoal.web.probe import silent
from shoal.web.retrying import RetriesExhausted, Retry, retrying

READ_TIMEOUT = 5.0
"""Seconds for one build-index to look up a tag; then the next one is asked."""

READINESS_TIMEOUT = 2.0

log = structlog.get_logger()

_ERRORS: dict[str, type[ApiError]] = {
    error.code: error
    for error in (
        DigestInvalid,
        ManifestBlobUnknown,
        ManifestInvalid,
        NameInvalid,
        NameUnknown,
        TagInvalid,
    )
}
"""Answers of the build-index that are the caller's own answers to its client."""


class BuildIndexClient:
    """All build-indexes of the cluster as one. The first that answers is asked; it has all tags.

    Every method raises `shoal.web.failures.CallFailed` when no build-index could answer within the
    deadline: `Unreachable` or `Overloaded` of the last one tried.
    """

    def __init__(
        self,
        http: HttpClient,
        config: HostsConfig,
        *,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retry` is for writes and checks that no build-index took; None: the default policy."""
        self._http = http
        self._retry = retry or RetryPolicy()
        self._rng = random.Random()
        self._hosts = list(config.hosts)
        self._clock = clock
        self._health = Health()
        self._suspects: set[str] = set()

    async def put_tag(
        self,
        repository: str,
        tag: str,
        digest: Digest,
        manifest: bytes | None,
        media_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> None:
        """Point the tag to the manifest; without its bytes, the build-index reads them itself.

        `index_children` says what an index needs of its children (`shoal.buildindex.dependencies`);
        None: what the build-index is configured for. Build-indexes that cannot be reached are tried
        again within the deadline; one that answers has itself waited for what was missing. Raises
        `ManifestBlobUnknown`, `ManifestInvalid` or `DigestInvalid`; the tag is then as it was.
        """
        path = f"/tags/{_escape(f'{repository}:{tag}')}/digest/{digest}"
        await self._send(
            "PUT",
            path,
            manifest,
            media_type,
            deadline=deadline,
            index_children=index_children,
        )

    async def check(
        self,
        repository: str,
        digest: Digest,
        manifest: bytes | None,
        media_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> None:
        """Only check that everything the manifest needs is there; raises as `put_tag`."""
        path = f"/manifests/{_escape(repository)}/{digest}/check"
        await self._send(
            "POST",
            path,
            manifest,
            media_type,
            deadline=deadline,
            index_children=index_children,
        )

    async def get_tag(self, repository: str, tag: str, *, deadline: Deadline) -> Digest | None:
        """The digest that the tag points to, or None: there is no such tag.

        Before it says None it asks the other build-indexes that are not known to be down.
        """
        path = f"/tags/{_escape(f'{repository}:{tag}')}"
        unknown = False
        last: CallFailed = _nobody("GET", path)
        hosts = self._ordered()
        for position, host in enumerate(hosts):
            if unknown and host in self._suspects:
                continue
            share = _share(deadline, hosts, position).at_most(READ_TIMEOUT)
            try:
                return _tagged(await self._call(host, "GET", path, share))
            except (NotFound, Rejected) as error:
                if error.code != ManifestUnknown.code:
                    _raise_answer(error)
                    last = error
                unknown = unknown or error.code == ManifestUnknown.code
            except (Unreachable, Overloaded) as error:
                last = error
        if unknown:
            return None
        raise last

    async def tags(
        self, repository: str, n: int | None = None, last: str = "", *, deadline: Deadline
    ) -> list[str]:
        """At most `n` tags (None: all) after `last`, in ASCII order; raises `NameUnknown`."""
        path = f"/repositories/{_escape(repository)}/tags"
        return await self._list(path, n, last, deadline)

    async def repositories(
        self, n: int | None = None, last: str = "", *, deadline: Deadline
    ) -> list[str]:
        """At most `n` repositories that have a tag (None: all) after `last`, in ASCII order."""
        return await self._list("/repositories", n, last, deadline)

    async def alive(self) -> list[str]:
        """Nothing if a build-index answers; else each of them and why it does not."""
        return await self._silent("/health")

    async def readiness(self) -> list[str]:
        """Nothing if a build-index can take a push; else each of them and why it cannot."""
        return await self._silent("/readiness")

    async def _silent(self, path: str) -> list[str]:
        hosts = await silent(self._http, self._hosts, path, enough=1, timeout=READINESS_TIMEOUT)
        return [f"build-index {host}: {why}" for host, why in hosts.items()]

    async def _list(self, path: str, n: int | None, last: str, deadline: Deadline) -> list[str]:
        names: list[str] = []
        while n is None or len(names) < n:
            params = {"last": last}
            if n is not None:
                params["n"] = str(n - len(names))
            answer = await self._ask_any("GET", path, deadline, params=params)
            found, more = _page(answer)
            names += found
            if not more or not found:
                break
            last = found[-1]
        return names

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        media_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None,
    ) -> None:
        request: dict[str, Any] = {"data": body}
        if media_type and body is not None:
            request["headers"] = {"Content-Type": media_type}
        if index_children is not None:
            request["params"] = {"index_children": index_children}

        async def attempt(within: Deadline) -> Exception | None:
            try:
                await self._ask_any(method, path, within, **request)
            except Unreachable:
                raise
            except (ApiError, CallFailed) as answer:
                # The build-index has spent its own retries on it: it is final.
                return answer
            return None

        try:
            answer = await retrying(
                attempt, policy=self._retry, deadline=deadline, rng=self._rng, on_retry=_log_retry
            )
        except RetriesExhausted as exhausted:
            raise Unreachable(method, path, exhausted.message) from exhausted
        if answer is not None:
            raise answer

    async def _ask_any(self, method: str, path: str, deadline: Deadline, **request: Any) -> Answer:
        last: CallFailed = _nobody(method, path)
        hosts = self._ordered()
        for position, host in enumerate(hosts):
            share = _share(deadline, hosts, position)
            try:
                return await self._call(host, method, path, share, **request)
            except (NotFound, Rejected) as error:
                _raise_answer(error)
                last = error
            except (Unreachable, Overloaded) as error:
                last = error
        raise last

    async def _call(
        self, host: str, method: str, path: str, deadline: Deadline, **request: Any
    ) -> Answer:
        try:
            answer = await self._http.call(
                method, f"http://{host}{path}", deadline=deadline, **request
            )
        except (Unreachable, Overloaded):
            self._health.failed(host, self._clock())
            self._suspects.add(host)
            raise
        self._health.ok(host, self._clock())
        self._suspects.discard(host)
        return answer

    def _ordered(self) -> list[str]:
        return self._health.order(self._hosts, self._clock())


class _Names(msgspec.Struct):
    more: bool
    tags: list[str] = []
    repositories: list[str] = []


def _page(answer: Answer) -> tuple[list[str], bool]:
    page = answer.decode(_Names)
    return page.tags or page.repositories, page.more


def _tagged(answer: Answer) -> Digest:
    try:
        return Digest.parse(answer.body.decode("ascii", "replace"))
    except InvalidDigest as error:
        raise Unreachable("GET", answer.url, str(error), status=200) from error


def _raise_answer(error: CallFailed) -> None:
    """Raise what the build-index said, if it is an answer to the caller's question."""
    known = _ERRORS.get(error.code or "")
    if known is not None:
        said = error.body["errors"][0]
        raise known(str(said.get("message", error.detail)), detail=said.get("detail")) from error


def _share(deadline: Deadline, hosts: list[str], position: int) -> Deadline:
    """An equal part of the time left for each host that may still have to be asked."""
    return deadline.at_most(deadline.remaining() / (len(hosts) - position))


def _nobody(method: str, path: str) -> CallFailed:
    return Unreachable(method, path, "no build-index is configured")


def _log_retry(retry: Retry) -> None:
    log.warning(
        "no build-index took the request, will retry",
        attempt=retry.attempt,
        wait_s=round(retry.wait, 3),
        error=str(retry.error),
    )


def _escape(text: str) -> str:
    return quote(text, safe="")
