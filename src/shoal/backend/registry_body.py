# SPDX-License-Identifier: Apache-2.0
"""A blob's bytes as a registry sends them, asked for again from where they broke off."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol

from shoal.backend.registry_http import Reply
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Unreachable

RESUMPTIONS = 4
"""How often a body that broke off is asked for again."""

PAUSE = 0.2
"""Seconds before the first resumption; doubled for each that follows."""

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_PAST_END = re.compile(r"bytes \*/(\d{1,18})", re.ASCII)


class Opener(Protocol):
    """How a path of the registry is opened."""

    def __call__(
        self, path: str, headers: Mapping[str, str], deadline: Deadline
    ) -> AbstractAsyncContextManager[Reply]:
        """The answer to a GET: 200, 206 or 416; raises as `RegistryHttp.open`."""
        ...


class RegistryContent:
    """Bytes [start, stop) of a blob; close it when done."""

    def __init__(
        self, opener: Opener, paths: Sequence[str], start: int, stop: int | None, timeout: float
    ) -> None:
        """`paths` are tried in turn until one is not 404; `timeout` bounds each resumption."""
        self.size = 0
        self._opener = opener
        self._paths = list(paths)
        self._at = start
        self._wanted = stop
        self._stop = 0
        self._timeout = timeout
        self._reply: Reply | None = None
        self._opened: AsyncExitStack | None = None
        self._skip = 0

    async def open(self, deadline: Deadline) -> None:
        """Wait for the beginning of the answer."""
        missing: NotFound | None = None
        for path in self._paths:
            try:
                self.size = await self._open(path, deadline)
            except NotFound as error:
                missing = missing or error
                continue
            self._paths = [path]
            self._stop = self.size if self._wanted is None else min(self._wanted, self.size)
            return
        assert missing is not None  # noqa: S101 there is at least one path
        raise missing

    async def close(self) -> None:
        """Let the connection go."""
        opened, self._opened, self._reply = self._opened, None, None
        if opened is not None:
            await opened.aclose()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes; what breaks off is asked for again from there, a bounded number of times."""
        resumptions = 0
        while self._at < self._stop:
            try:
                async for chunk in self._received():
                    yield chunk
            except (Unreachable, Overloaded) as error:
                resumptions += 1
                if resumptions > RESUMPTIONS:
                    raise
                await self._resume(error, PAUSE * 2 ** (resumptions - 1))

    async def _received(self) -> AsyncIterator[bytes]:
        """What the present answer brings, up to the end that is wanted."""
        reply = self._reply
        if reply is None:
            raise Unreachable("GET", self._paths[0], "the content was closed")
        async for chunk in reply.chunks():
            part = chunk[self._skip :]
            self._skip = max(0, self._skip - len(chunk))
            part = part[: self._stop - self._at]
            if part:
                self._at += len(part)
                yield part
            if self._at >= self._stop:
                return
        raise reply.failed(f"the body ended at byte {self._at} of {self._stop}")

    async def _resume(self, broken: CallFailed, pause: float) -> None:
        await self.close()
        if broken.retry_after is not None and broken.retry_after > pause:
            raise broken
        await asyncio.sleep(pause)
        try:
            size = await self._open(self._paths[0], Deadline.after(self._timeout))
        except NotFound as error:
            raise Unreachable("GET", broken.url, f"{broken.detail}; then it was gone") from error
        if size != self.size:
            raise Unreachable("GET", broken.url, f"it had {self.size} bytes, and now it has {size}")

    async def _open(self, path: str, deadline: Deadline) -> int:
        """Open from where we are; return the size of the whole, as the answer says it."""
        headers = {}
        if self._at or self._wanted is not None:
            last = "" if self._wanted is None else max(self._wanted - 1, self._at)
            headers["Range"] = f"bytes={self._at}-{last}"
        stack = AsyncExitStack()
        try:
            reply = await stack.enter_async_context(self._opener(path, headers, deadline))
            size = self._checked(reply, ranged=bool(headers))
        except BaseException:
            await stack.aclose()
            raise
        self._opened, self._reply = stack, reply
        return size

    def _checked(self, reply: Reply, *, ranged: bool) -> int:
        """The size of the whole; raise when the answer is not the one that was asked for."""
        encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise reply.rejected(f"it sent the blob in another encoding ({encoding[:40]})")
        said = reply.headers.get("Content-Range", "")
        if reply.status == 416:
            past = _PAST_END.fullmatch(said)
            if past is None or int(past[1]) > self._at:
                raise reply.rejected(f"it cannot give bytes from {self._at}")
            return int(past[1])
        if reply.status == 206:
            return self._checked_range(reply, said, ranged=ranged)
        if reply.length is None:
            raise reply.failed("it does not say how many bytes it sends (Content-Length)")
        self._skip = self._at
        return reply.length

    def _checked_range(self, reply: Reply, said: str, *, ranged: bool) -> int:
        match = _RANGE.fullmatch(said)
        if match is None or not ranged:
            raise reply.rejected(f"its 206 has no range that was asked for: {said[:80]!r}")
        first, last, size = int(match[1]), int(match[2]), int(match[3])
        stop = size if self._wanted is None else min(max(self._wanted, self._at + 1), size)
        if first != self._at or last + 1 != stop:
            raise reply.rejected(f"it sent {said[:80]!r} for bytes {self._at} to {stop}")
        if reply.length not in (None, last + 1 - first):
            raise reply.failed(f"it announced {reply.length} bytes for {said[:80]!r}")
        self._skip = 0
        return size
