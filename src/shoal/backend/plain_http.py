# SPDX-License-Identifier: Apache-2.0
"""Storage behind a plain web server: read-only, by the paths of the layout."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from yarl import URL

from shoal.backend.asking import Call
from shoal.backend.base import Content, Listing, Name, Page, Source
from shoal.backend.config import HttpBackendConfig
from shoal.backend.paths import NoPath
from shoal.store.threads import in_thread
from shoal.web.client import HttpClient, StreamedAnswer
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected, Unreachable

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_REFUSED = (401, 403)
_NO_HEAD = frozenset({405, 501})
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", re.ASCII)
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,18})", re.ASCII)


class PlainHttpBackend:
    """Names as paths below a URL."""

    def __init__(self, config: HttpBackendConfig, http: HttpClient) -> None:
        self._config = config
        self._layout = config.layout
        self._base = URL(config.url)
        self._http = http

    @property
    def description(self) -> str:
        return "/".join(filter(None, (self._config.url, self._layout.root)))

    @property
    def read_only(self) -> bool:
        return True

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        url = self._url("HEAD", name)
        try:
            try:
                size = await self._length("HEAD", url, deadline)
            except Rejected as error:
                if error.status not in _NO_HEAD:
                    raise
                size = None
            if size is None:
                size = await self._length("GET", url, deadline)
        except NotFound:
            return None
        if size is None:
            raise _without_size("GET", url)
        return size

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        url = self._url("GET", name)
        headers = {}
        if start or stop is not None:
            # An empty part is asked for as its first byte: HTTP has no range without bytes.
            last = "" if stop is None else max(stop - 1, start)
            headers["Range"] = f"bytes={start}-{last}"
        async with self._answer("GET", url, deadline, headers, also=(206, 416)) as answer:
            if answer.status == 416:
                match = _UNSATISFIED.fullmatch(answer.headers.get("Content-Range", ""))
                size = int(match[1]) if match else await self.stat(name, deadline=deadline)
                if size is None or start < size:
                    raise Rejected("GET", str(url), "it does not serve this range", status=416)
                yield _Part(url, answer, size, sent_from=size, part=range(0))
                return
            size, sent_from = _extent(url, answer, start)
            end = size if stop is None else min(stop, size)
            yield _Part(url, answer, size, sent_from, range(min(start, size), max(start, end)))

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        """Refuse: a web server is only read."""
        del source, deadline
        raise self._only_read("PUT", name)

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        """Refuse: HTTP has no listing."""
        del after, limit, deadline
        raise Rejected("LIST", self.description, f"a web server cannot list {listing}")

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        """Refuse: a web server is only read."""
        del deadline
        raise self._only_read("DELETE", name)

    async def close(self) -> None:
        """The HTTP client is the process's."""

    async def _length(self, method: str, url: URL, deadline: Deadline) -> int | None:
        async with self._answer(method, url, deadline, {}) as answer:
            return answer.size

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        url: URL,
        deadline: Deadline,
        headers: Mapping[str, str],
        also: tuple[int, ...] = (),
    ) -> AsyncIterator[StreamedAnswer]:
        """Ask, and follow redirects; credentials go to the server of the config only."""
        deadline = deadline.at_most(self._config.timeout)
        at = url
        for _ in range(_MAX_REDIRECTS + 1):
            mine = await self._authorization() if at.origin() == self._base.origin() else {}
            async with self._http.stream(
                method,
                str(at),
                deadline=deadline,
                headers={**headers, **mine},
                expect=(200, *also, *_REDIRECTS, *_REFUSED),
                idle_timeout=self._config.timeout,
            ) as answer:
                if answer.status in _REFUSED:
                    why = "the server does not accept the credentials for this"
                    raise Rejected(method, str(at), why, status=answer.status)
                if answer.status not in _REDIRECTS:
                    yield answer
                    return
                at = _next(method, at, answer.headers.get("Location", ""))
        raise Rejected(method, str(url), f"more than {_MAX_REDIRECTS} redirects")

    async def _authorization(self) -> dict[str, str]:
        user, password = self._config.username, self._config.password
        if user is None:
            return {}
        text = password.get_secret_value() if password is not None else ""
        if self._config.password_file is not None:
            text = (await in_thread(_read, self._config.password_file, self.description)).strip()
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{text}'.encode()).decode()}"}

    def _url(self, method: str, name: Name) -> URL:
        try:
            return URL(f"{self._config.url}/{self._layout.path(name)}")
        except NoPath as error:
            raise Rejected(method, self.description, str(error)) from error

    def _only_read(self, method: str, name: Name) -> CallFailed:
        return Rejected(method, str(self._url(method, name)), "a web server is only read")


class _Part:
    """A part of a body that may hold more: a server may send the whole for a range."""

    def __init__(
        self, url: URL, answer: StreamedAnswer, size: int, sent_from: int, part: range
    ) -> None:
        self.size = size
        self._url = url
        self._answer = answer
        self._at = sent_from
        self._part = part

    async def chunks(self) -> AsyncIterator[bytes]:
        if not self._part:
            return
        at, part = self._at, self._part
        async for chunk in self._answer.chunks():
            wanted = chunk[max(0, part.start - at) : max(0, part.stop - at)]
            at += len(chunk)
            if wanted:
                yield wanted
            if at >= part.stop:
                return
        raise Call("GET", str(self._url)).short(max(0, at - part.start), len(part))


def _extent(url: URL, answer: StreamedAnswer, start: int) -> tuple[int, int]:
    """Bytes of the whole, and where in it the body begins."""
    if answer.status == 200:
        if answer.size is None:
            raise _without_size("GET", url)
        return answer.size, 0
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        raise Unreachable("GET", str(url), "its Content-Range is not what was asked for")
    return int(match[3]), start


def _next(method: str, at: URL, location: str) -> URL:
    try:
        to = at.join(URL(location))
    except ValueError:
        to = URL()
    if not location or to.scheme not in ("http", "https") or not to.host:
        raise Rejected(method, str(at), "it redirects to something that is no URL")
    if at.scheme == "https" and to.scheme == "http":
        raise Rejected(method, str(at), f"it redirects from https to http ({to.host})")
    return to.with_user(None).with_password(None)


def _without_size(method: str, url: URL) -> CallFailed:
    return Unreachable(method, str(url), "it does not say how many bytes it has (Content-Length)")


def _read(path: Path, of: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreachable("GET", of, f"cannot read password_file {path}: {error}") from error
