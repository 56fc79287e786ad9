# SPDX-License-Identifier: Apache-2.0
"""A blob on the origins as a stream that outlives any one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from shoal.model.digest import Digest
from shoal.origin.poll import Poll
from shoal.web.client import HttpClient, StreamedAnswer
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Unreachable
from shoal.web.ranges import content_range

FIRST_BYTE_TIMEOUT = 15.0
"""Seconds until a host has begun its answer."""

IDLE_TIMEOUT = 15.0
"""Seconds without a byte after which the next host continues."""

HEDGE_AFTER = 1.0
"""Seconds without a first byte after which the next host is asked as well."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A body whose first bytes are here."""

    host: str
    first: bytes
    rest: AsyncGenerator[bytes]


class RemoteBlob:
    """A blob of known size that one of these origins has (`shoal.web.bodies.Blob`).

    Reading is not bound by the deadline of the request that opened it but by each host's progress:
    a body may take as long as it flows.
    """

    def __init__(
        self,
        http: HttpClient,
        failed: Callable[[str], None],
        digest: Digest,
        size: int,
        hosts: Sequence[str],
        *,
        hedge_after: float = HEDGE_AFTER,
    ) -> None:
        """`failed` is told of each host that could not give its part, or was overtaken."""
        self._http = http
        self._failed = failed
        self._hosts = list(hosts)
        self._hedge_after = hedge_after
        self.digest = digest
        self.size = size

    async def segments(self, start: int, stop: int) -> AsyncGenerator[bytes]:
        """Bytes [start, stop) in order; a host that fails midway is continued by the next.

        While a host is slow to begin, the next one is asked as well, and the first to give bytes is
        read. Raises `Unreachable` when every host failed since the last byte came.
        """
        hosts = deque(self._hosts)
        while start < stop:
            begun = await self._begin(hosts, start, stop)
            try:
                async with aclosing(begun.rest) as rest:
                    start += len(begun.first)
                    yield begun.first
                    async for chunk in rest:
                        start += len(chunk)
                        yield chunk
            except CallFailed:
                self._failed(begun.host)
            # Whoever gave bytes may be asked again, after all the others.
            hosts.remove(begun.host)
            hosts.append(begun.host)

    async def _begin(self, hosts: Sequence[str], start: int, stop: int) -> _Begun:
        """The first of the hosts to give bytes; the answers of all others are dropped."""
        begun: list[_Begun] = []

        async def begin(host: str) -> _Begun:
            part = self._from(host, start, stop)
            try:
                one = _Begun(host, await anext(part), part)
            except StopAsyncIteration:
                detail = f"the body ended at byte {start} of {stop}"
                raise Unreachable("GET", host, detail) from None
            begun.append(one)
            return one

        poll: Poll[_Begun] = Poll()
        chosen: _Begun | None = None
        try:
            await poll.ask(
                list(hosts),
                begin,
                enough=lambda poll: 0.0 if poll.found else None,
                stagger=self._hedge_after,
            )
            chosen = next(iter(poll.found.values()), None)
        finally:
            for one in begun:
                if one is not chosen:
                    await one.rest.aclose()
        for host in (*poll.unasked, *poll.overtaken):
            self._failed(host)
        if chosen is None:
            raise self._nobody_left(start, poll)
        return chosen

    def _nobody_left(self, start: int, poll: Poll[_Begun]) -> Unreachable:
        detail = f"{self.digest}: no origin could go on from byte {start}: {poll.said()}"
        return Unreachable("GET", f"/internal/blobs/{self.digest}", detail)

    async def _from(self, host: str, start: int, stop: int) -> AsyncGenerator[bytes]:
        url = self._http.url(host, f"/internal/blobs/{self.digest}")
        whole = start == 0 and stop == self.size
        headers = {} if whole else {"Range": f"bytes={start}-{stop - 1}"}
        async with self._http.stream(
            "GET",
            url,
            deadline=Deadline.after(FIRST_BYTE_TIMEOUT),
            headers=headers,
            expect=(200,) if whole else (206,),
            idle_timeout=IDLE_TIMEOUT,
        ) as answer:
            self._check(answer, url, start, stop, whole=whole)
            left = stop - start
            async for chunk in answer.chunks():
                if len(chunk) > left:
                    raise Unreachable("GET", url, "more bytes than were asked for")
                left -= len(chunk)
                yield chunk

    def _check(
        self, answer: StreamedAnswer, url: str, start: int, stop: int, *, whole: bool
    ) -> None:
        """A host whose copy has another size must not continue the body of one before it."""
        name = "Content-Length" if whole else "Content-Range"
        expected = str(self.size) if whole else content_range(start, stop, self.size)
        if answer.headers.get(name) != expected:
            detail = f"{name} is {answer.headers.get(name)!r}, expected {expected!r}"
            raise Unreachable("GET", url, detail)

    async def close(self) -> None:
        """Nothing is held between segments."""
