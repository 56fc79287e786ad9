# SPDX-License-Identifier: Apache-2.0
"""Call another service over HTTP, within the caller's deadline; failures say what was tried.

No exception of the HTTP library leaves this module: see `shoal.web.failures`.
"""

from __future__ import annotations

import asyncio
import io
import os
import ssl
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from shoal.store.threads import in_thread, open_file
from shoal.web.deadline import HEADER, Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable
from shoal.web.file_request import STALL_TIMEOUT, BadAnswer, Pace, request_with_file
from shoal.web.tls import Tls, why

MAX_BODY = 16 * 1024 * 1024
"""Most bytes of an answer that `HttpClient.call` takes into memory."""

READ_BUFFER = 1024 * 1024

LARGE = 1024 * 1024
"""Bytes from which a body is written to the socket in parts, so that others have their turn."""

_DETAIL = 300

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was expected, whole."""

    method: str
    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def decode(self, kind: type[T]) -> T:
        """Return the JSON body as `kind`; raise `Unreachable` when it is something else."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreachable(
                self.method,
                self.url,
                f"the answer is not what this version of Shoal expects: {error}",
                status=self.status,
            ) from error


class StreamedAnswer:
    """An answer whose body is still coming."""

    def __init__(self, method: str, url: str, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._call = (method, url)
        self._response = response

    @property
    def size(self) -> int | None:
        """Content-Length, if it was announced."""
        return self._response.content_length

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; raise `Unreachable` when it stops before its end."""
        received = 0
        with _mapped(*self._call, "the answer broke off"):
            async for chunk in self._response.content.iter_any():
                received += len(chunk)
                yield chunk
            if self.size is not None and received != self.size:
                raise Unreachable(
                    *self._call, f"the answer ended after {received} of {self.size} bytes"
                )


class HttpClient:
    """The HTTP client of one process: keep-alive, no redirects, no limit but the deadline."""

    def __init__(
        self,
        *,
        user_agent: str,
        tls: Tls | None = None,
        connect_timeout: float = 3.0,
        limit_per_host: int = 64,
    ) -> None:
        """`tls`: how the services of this cluster are called, that is those of `url`.

        Without it https is as everywhere: the system's CAs, and no certificate of this side.
        """
        self._ssl = None if tls is None else tls.client
        self._user_agent = user_agent
        self._connect_timeout = connect_timeout
        self._limit_per_host = limit_per_host
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def url(self, host: str, path: str) -> str:
        """The URL of a path at another service (``host:port``) of this cluster."""
        return f"{'http' if self._ssl is None else 'https'}://{host}{path}"

    async def call(
        self,
        method: str,
        url: str,
        *,
        deadline: Deadline,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        expect: Collection[int] = (200,),
    ) -> Answer:
        """Ask, and return the whole answer when its status is expected.

        `json` may be anything that msgspec encodes. A POST whose kept connection turns out to be
        closed (the service was restarted) is sent once more, as the HTTP library does for the
        idempotent methods: every POST between services may be repeated. Raises `CallFailed`:
        `NotFound` for 404, `Overloaded` for 429 and 5xx, `Rejected` for other statuses,
        `Unreachable` when there was no proper answer.
        """
        head = dict(headers or {})
        if json is not None:
            data = msgspec.json.encode(json)
            head.setdefault("Content-Type", "application/json")
        remaining = _remaining(method, url, deadline)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout)

        async def ask() -> Answer:
            async with self._open().request(
                method,
                _url(url, params),
                headers=self._head(head, deadline),
                data=_in_parts(data),
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                body = await _whole(method, url, response)
                return Answer(method, url, response.status, response.headers, body)

        with _mapped(method, url, f"no answer within {remaining:.1f} s"):
            async with asyncio.timeout(remaining):
                try:
                    answer = await ask()
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if method != "POST" or not _dropped(error) or isinstance(data, AsyncIterator):
                        raise
                    answer = await ask()
        _check(answer, expect)
        return answer

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        deadline: Deadline,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (200, 206),
        idle_timeout: float = 15.0,
    ) -> AsyncIterator[StreamedAnswer]:
        """Ask, and give the answer while it comes.

        The deadline bounds the wait for the head. A body may take long, but never pause for more
        than `idle_timeout` seconds. Leaving early drops the connection. Raises as `call` does.
        """
        remaining = _remaining(method, url, deadline)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_timeout, sock_read=idle_timeout
        )
        with _mapped(method, url, f"no answer within {remaining:.1f} s"):
            async with asyncio.timeout(remaining):
                response = await self._open().request(
                    method,
                    _url(url, params),
                    headers=self._head(headers, deadline),
                    timeout=timeout,
                    allow_redirects=False,
                )
        try:
            if response.status not in expect:
                with _mapped(method, url, "the answer broke off"):
                    async with asyncio.timeout(idle_timeout):
                        body = await _whole(method, url, response)
                _check(Answer(method, url, response.status, response.headers, body), expect)
            yield StreamedAnswer(method, url, response)
        finally:
            # Kept for the next call when the body was read to its end, closed otherwise.
            response.release()

    async def upload(
        self,
        url: str,
        file: Path | int,
        size: int,
        *,
        method: str = "PUT",
        deadline: Deadline,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (200, 201),
        stall_timeout: float = STALL_TIMEOUT,
        pace: Pace | None = None,
    ) -> Answer:
        """Send the first `size` bytes of a file (path, or descriptor that stays open) as the body.

        The bytes go from the page cache to the socket by sendfile (read and encrypted here, where
        the URL is one of https), over a connection of their own;
        `pace`, if given, is waited for before each part. An answer that comes before all is sent
        ends the sending. Raises as `call` does.
        """
        remaining = _remaining(method, url, deadline)
        head = self._head(headers, deadline)
        descriptor = file if isinstance(file, int) else await open_file(file)
        try:
            with _mapped(method, url, f"not sent and answered in {remaining:.1f} s"):
                async with asyncio.timeout(remaining):
                    status, answered, body = await request_with_file(
                        method,
                        _url(url, params),
                        head,
                        descriptor,
                        size,
                        connect_timeout=self._connect_timeout,
                        stall_timeout=stall_timeout,
                        pace=pace,
                        tls=self._ssl,
                    )
        finally:
            if not isinstance(file, int):
                await in_thread(os.close, descriptor)
        answer = Answer(method, url, status, answered, body)
        _check(answer, expect)
        return answer

    async def close(self) -> None:
        """Close all connections, for good: calls under way and later ones are `Unreachable`."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise aiohttp.ClientConnectionError("this process has closed its HTTP client")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=self._limit_per_host,
                    keepalive_timeout=30,
                    ssl=True if self._ssl is None else self._ssl,
                ),
                headers={"User-Agent": self._user_agent},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=READ_BUFFER,
            )
        return self._session

    def _head(self, headers: Mapping[str, str] | None, deadline: Deadline) -> dict[str, str]:
        # Blobs are sent as they are stored: no transfer in another encoding.
        mine = {"User-Agent": self._user_agent, "Accept-Encoding": "identity"}
        return {**mine, **(headers or {}), HEADER: deadline.header_value()}


@contextmanager
def _mapped(method: str, url: str, late: str) -> Iterator[None]:
    """Turn what the HTTP library and the system raise into `Unreachable`."""
    try:
        yield
    except CallFailed:
        raise
    except TimeoutError as error:
        detail = str(error) or late
        raise Unreachable(method, url, detail) from error
    except (aiohttp.ClientError, BadAnswer, OSError, ValueError) as error:
        raise Unreachable(method, url, _reason(error)) from error


def _dropped(error: aiohttp.ClientError) -> bool:
    """Whether a connection that stood was closed, so that a new one may work."""
    return not isinstance(error, aiohttp.ClientConnectorError)


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ssl.SSLError):
        return why(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _in_parts(
    data: bytes | AsyncIterator[bytes] | None,
) -> bytes | AsyncIterator[bytes] | aiohttp.BytesIOPayload | None:
    if isinstance(data, bytes) and len(data) >= LARGE:
        return aiohttp.BytesIOPayload(io.BytesIO(data))
    return data


def _remaining(method: str, url: str, deadline: Deadline) -> float:
    remaining = deadline.remaining()
    if remaining <= 0:
        raise Unreachable(method, url, "not asked: the deadline has passed")
    return remaining


def _url(url: str, params: Mapping[str, str] | None) -> URL:
    # Callers quote paths themselves: a repository name is one segment with its slashes quoted.
    parsed = URL(url, encoded=True)
    return parsed.update_query(params) if params else parsed


async def _whole(method: str, url: str, response: aiohttp.ClientResponse) -> bytes:
    chunks = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_BODY:
            response.close()
            raise Unreachable(method, url, f"the answer has more than {MAX_BODY} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _check(answer: Answer, expect: Collection[int]) -> None:
    """Raise what the status means unless it is expected."""
    if answer.status in expect:
        return
    try:
        body = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = None
    kind: type[CallFailed] = Rejected
    if answer.status == 404:
        kind = NotFound
    elif answer.status == 429 or answer.status >= 500:
        kind = Overloaded
    raise kind(
        answer.method,
        answer.url,
        _message(answer, body),
        status=answer.status,
        body=body,
        retry_after=_retry_after(answer.headers),
    )


def _message(answer: Answer, body: Any) -> str:
    try:
        return "; ".join(f"{error['code']}: {error['message']}" for error in body["errors"])
    except (TypeError, KeyError):
        text = answer.body[:_DETAIL].decode(errors="replace").strip()
        return text or f"status {answer.status} and an empty body"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 8 else None
