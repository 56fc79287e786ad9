# SPDX-License-Identifier: Apache-2.0
"""A body that is continued by another origin is the same body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.origin.remote_blob import RemoteBlob
from shoal.web.client import HttpClient
from shoal.web.failures import NotFound, Unreachable

DATA = bytes(range(256)) * 8
DIGEST = Digest.of(DATA)
HOSTS = ["a:1", "b:1", "c:1"]


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes, breaks: bool) -> None:
        self.status = status
        self.headers = headers
        self._body = body
        self._breaks = breaks

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), 100):
            yield self._body[start : start + 100]
        if self._breaks:
            raise Unreachable("GET", "x", "reset")


class Origins:
    """Serve DATA; `gives` says how many bytes each host sends per request before it breaks off."""

    def __init__(self, **gives: int | None) -> None:
        self.gives = {f"{name}:1": count for name, count in gives.items()}
        self.asked: list[tuple[str, str | None]] = []
        self.sizes: dict[str, int] = {}
        self.absent: set[str] = set()
        self.slow: dict[str, asyncio.Event] = {}
        """Hosts that give their first byte when the event comes."""
        self.failed: list[str] = []
        self.open = 0
        self.all_asked = asyncio.Event()

    def url(self, host: str, path: str) -> str:
        return f"http://{host}{path}"

    @asynccontextmanager
    async def stream(
        self, _method: str, url: str, *, headers: dict[str, str], **_: Any
    ) -> AsyncIterator[Answer]:
        host = url.split("/")[2]
        span = headers.get("Range")
        self.asked.append((host, span))
        if host in self.absent:
            raise NotFound("GET", url, "not there")
        size = self.sizes.get(host, len(DATA))
        start, last = (0, len(DATA) - 1) if span is None else map(int, span[6:].split("-"))
        body = DATA[start : last + 1]
        count = self.gives.get(host)
        breaks = count is not None and count < len(body)
        told = (
            {"Content-Length": str(size)}
            if span is None
            else {"Content-Range": f"bytes {start}-{last}/{size}"}
        )
        self.open += 1
        if self.open == len(HOSTS):
            self.all_asked.set()
        try:
            if host in self.slow:
                await self.slow[host].wait()
            yield Answer(
                200 if span is None else 206, told, body[:count] if breaks else body, breaks
            )
        finally:
            self.open -= 1


def blob(origins: Origins) -> RemoteBlob:
    return RemoteBlob(
        cast("HttpClient", origins),
        origins.failed.append,
        DIGEST,
        len(DATA),
        HOSTS,
        hedge_after=0.02,
    )


async def read(remote: RemoteBlob, start: int = 0, stop: int = len(DATA)) -> bytes:
    return b"".join([part async for part in remote.segments(start, stop)])


async def test_the_whole_is_asked_for_without_a_range() -> None:
    origins = Origins()
    assert await read(blob(origins)) == DATA
    assert origins.asked == [("a:1", None)]


async def test_the_next_host_continues_at_the_byte_where_one_broke_off() -> None:
    origins = Origins(a=300, b=500)
    assert await read(blob(origins)) == DATA
    assert origins.asked == [
        ("a:1", None),
        ("b:1", f"bytes=300-{len(DATA) - 1}"),
        ("c:1", f"bytes=800-{len(DATA) - 1}"),
    ]


async def test_hosts_that_make_progress_are_asked_again() -> None:
    origins = Origins(a=700, b=700, c=0)
    assert await read(blob(origins)) == DATA


async def test_it_ends_when_nobody_makes_progress() -> None:
    origins = Origins(a=300, b=0, c=0)
    remote = blob(origins)
    received = bytearray()

    async def consume() -> None:
        async for part in remote.segments(0, len(DATA)):
            received.extend(part)
            origins.gives["a:1"] = 0

    with pytest.raises(Unreachable, match="no origin could go on from byte 300") as failed:
        await consume()
    assert DATA.startswith(bytes(received))
    assert all(host in str(failed.value) for host in HOSTS)


async def test_a_host_with_another_size_is_passed_over() -> None:
    origins = Origins(a=300)
    origins.sizes["b:1"] = len(DATA) + 1
    assert await read(blob(origins)) == DATA
    assert [host for host, _ in origins.asked] == ["a:1", "b:1", "c:1"]


async def test_a_host_that_no_longer_has_it_is_passed_over() -> None:
    origins = Origins()
    origins.absent = {"a:1"}
    assert await read(blob(origins), 5, 10) == DATA[5:10]


async def test_while_a_host_is_slow_to_begin_the_next_one_is_read() -> None:
    origins = Origins()
    origins.slow["a:1"] = asyncio.Event()
    assert await read(blob(origins)) == DATA
    assert [host for host, _ in origins.asked] == ["a:1", "b:1"]
    assert (origins.failed, origins.open) == (["a:1"], 0)


async def test_a_host_that_begins_late_but_first_is_read() -> None:
    origins = Origins()
    gate = asyncio.Event()
    origins.slow = {"a:1": gate, "b:1": asyncio.Event(), "c:1": asyncio.Event()}
    reading = asyncio.create_task(read(blob(origins)))
    async with asyncio.timeout(5):
        await origins.all_asked.wait()
    gate.set()
    assert await reading == DATA
    assert origins.open == 0


async def test_a_reader_who_leaves_drops_all_that_was_asked_for() -> None:
    origins = Origins()
    origins.slow = {host: asyncio.Event() for host in HOSTS}
    reading = asyncio.create_task(read(blob(origins)))
    async with asyncio.timeout(5):
        await origins.all_asked.wait()
    reading.cancel()
    await asyncio.wait([reading])
    assert origins.open == 0


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.one_of(st.none(), st.integers(1, 900))] * 3),
    st.integers(0, len(DATA)),
    st.integers(0, len(DATA)),
)
def test_every_part_comes_whole_however_often_hosts_break_off(
    gives: tuple[int | None, int | None, int | None], start: int, stop: int
) -> None:
    a, b, c = gives
    part = asyncio.run(read(blob(Origins(a=a, b=b, c=c)), start, stop))
    assert part == DATA[start:stop]
