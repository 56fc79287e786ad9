# SPDX-License-Identifier: Apache-2.0
"""A blob on the origins as a stream that outlives any one of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from shoal.model.digest import Digest
from shoal.ring.health import Health
from shoal.web.client import HttpClient, StreamedAnswer
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Unreachable
from shoal.web.ranges import content_range

FIRST_BYTE_TIMEOUT = 15.0
"""Seconds until a host has begun its answer."""

IDLE_TIMEOUT = 15.0
"""Seconds without a byte after which the next host continues."""


class RemoteBlob:
    """A blob of known size that one of these origins has (`shoal.web.bodies.Blob`).

    Reading is not bound by the deadline of the request that opened it but by each host's progress:
    a body may take as long as it flows.
    """

    def __init__(
        self, http: HttpClient, health: Health, digest: Digest, size: int, hosts: Sequence[str]
    ) -> None:
        self._http = http
        self._health = health
        self._hosts = list(hosts)
        self.digest = digest
        self.size = size

    async def segments(self, start: int, stop: int) -> AsyncGenerator[bytes]:
        """Bytes [start, stop) in order; a host that fails midway is continued by the next.

        Raises `Unreachable` when every host failed since the last byte came.
        """
        hosts = deque(self._hosts)
        failures: dict[str, str] = {}
        fruitless = 0
        while start < stop:
            if fruitless == len(hosts):
                raise self._nobody_left(start, failures)
            host, before = hosts[0], start
            try:
                async with aclosing(self._from(host, start, stop)) as chunks:
                    async for chunk in chunks:
                        start += len(chunk)
                        yield chunk
                if start < stop:
                    raise Unreachable("GET", host, f"the body ended at byte {start} of {stop}")
            except CallFailed as error:
                failures[host] = error.detail
                if not isinstance(error, NotFound):
                    self._health.failed(host, time.monotonic())
                # Whoever gave bytes may be asked again, after all the others.
                hosts.rotate(-1)
                fruitless = 0 if start > before else fruitless + 1

    def _nobody_left(self, start: int, failures: Mapping[str, str]) -> Unreachable:
        tried = "; ".join(f"{host}: {why}" for host, why in failures.items())
        detail = f"{self.digest}: no origin could go on from byte {start}: {tried}"
        return Unreachable("GET", f"/internal/blobs/{self.digest}", detail)

    async def _from(self, host: str, start: int, stop: int) -> AsyncGenerator[bytes]:
        url = f"http://{host}/internal/blobs/{self.digest}"
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
