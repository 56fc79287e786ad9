# SPDX-License-Identifier: Apache-2.0
"""Requests to one registry: authorized, within its rate limit, redirected only where it is safe.

No exception of the HTTP library leaves this module, and no query of a URL (it may be signed) is in
an error.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from prometheus_client import Counter, Gauge
from yarl import URL

from shoal.backend.auth import Authenticator
from shoal.backend.credentials import CredentialSource
from shoal.backend.rate_limit import RateLimit
from shoal.backend.safety import (
    MAX_REDIRECTS,
    Refused,
    RefusedAddress,
    public_socket,
    same_origin,
    shown,
    target,
)
from shoal.model.digest import Digest, InvalidDigest
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable

SLOWEST = 1024
"""Bytes per second: a body that comes more slowly counts as stalled."""

CONNECTIONS = 64
"""Connections to one host, at most."""

CONNECT_TIMEOUT = 10.0

READ_BUFFER = 256 * 1024
"""Bytes of a body that wait for their reader, at most twice this."""

_MAX_ERROR = 64 * 1024
_DETAIL = 300
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

REQUESTS = Counter(
    "shoal_upstream_requests",
    "Requests to other registries, by registry (_default: named by clients) and status.",
    ["registry", "method", "status"],
)
HELD_BACK = Counter(
    "shoal_upstream_held_back",
    "Requests not sent because the registry asked to be left alone.",
    ["registry"],
)
_QUOTA = Gauge(
    "shoal_upstream_quota_remaining",
    "Requests that the registry's rate limit still allows, by its last answer that said so.",
    ["registry"],
)

Body = Callable[[], AsyncIterator[bytes]] | bytes
"""What is sent; a stream is made anew for each attempt."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked, whatever host it ends at."""

    method: str
    url: URL
    headers: Mapping[str, str]
    body: Body | None
    deadline: Deadline

    def send_to(self, url: URL, authorization: str | None = None) -> _Request:
        """The request to another URL, with or without credentials."""
        headers = dict(self.headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        return _Request(self.method, url, headers, self.body, self.deadline)


@dataclass(frozen=True, slots=True)
class Target:
    """A registry, and what is known of it before it is asked."""

    base: URL
    label: str
    """What it is called in metrics."""

    credentials: CredentialSource
    realms: tuple[str, ...] = ()
    configured: bool = True
    """Whether the operator named it; if not, its own address must be public, too."""

    allow_private: bool = False
    ca: Path | None = None
    timeout: float = 30.0


class Reply:
    """An answer whose body is still coming."""

    def __init__(self, method: str, response: aiohttp.ClientResponse, timeout: float) -> None:
        self.method = method
        self.url = shown(response.url)
        self.location = response.url
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._timeout = timeout

    @property
    def length(self) -> int | None:
        """Content-Length, if it was announced."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    @property
    def digest(self) -> Digest | None:
        """The digest in Docker-Content-Digest, or in an ETag that is one."""
        for header in ("Docker-Content-Digest", "ETag"):
            text = self.headers.get(header, "").removeprefix("W/").strip('"')
            try:
                return Digest.parse(text)
            except InvalidDigest:
                continue
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; `Unreachable` when it stalls or ends before its length."""
        received = 0
        waited, in_window = 0.0, 0
        with mapped(self.method, self.url, f"the body paused for more than {self._timeout:g} s"):
            while True:
                asked = time.monotonic()
                chunk = await self._response.content.readany()
                # Only the time spent waiting for the other side counts, not the reader's.
                waited += time.monotonic() - asked
                if not chunk:
                    break
                received += len(chunk)
                in_window += len(chunk)
                if waited >= self._timeout:
                    self._check_rate(in_window, waited)
                    waited, in_window = 0.0, 0
                yield chunk
        if self.method != "HEAD" and self.length not in (None, received):
            raise self.failed(f"the body ended after {received} of {self.length} bytes")

    async def whole(self, limit: int) -> bytes:
        """The body, if it has at most `limit` bytes; `Unreachable` if it has more."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                raise self.failed(f"the answer has more than {limit} bytes")
        return bytes(body)

    def failed(self, detail: str) -> Unreachable:
        """The failure that what came with this answer is of no use; another try may be better."""
        return Unreachable(self.method, self.url, detail, status=self.status)

    def rejected(self, detail: str) -> Rejected:
        """The failure that the answer is wrong, and would be again."""
        return Rejected(self.method, self.url, detail, status=self.status)

    def _check_rate(self, size: int, seconds: float) -> None:
        if size < SLOWEST * seconds:
            raise self.failed(
                f"the body comes too slowly: {size} bytes in {seconds:.1f} s "
                f"(at least {SLOWEST} bytes/s)"
            )


class RegistryHttp:
    """The HTTP client of one registry."""

    def __init__(self, to: Target, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._to = to
        self._clock = clock
        self._limit = RateLimit()
        self._trusted: aiohttp.ClientSession | None = None
        self._guarded: aiohttp.ClientSession | None = None
        self._closed = False
        self._users = 0
        self._opening = asyncio.Lock()
        self._auth = Authenticator(
            to.base,
            to.credentials,
            self._ask_token,
            realms=to.realms,
            timeout=to.timeout,
            clock=clock,
        )

    @property
    def idle(self) -> bool:
        """Whether nobody uses it now."""
        return self._users == 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have it not be `idle` meanwhile, also between two requests."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: URL,
        scope: str,
        *,
        deadline: Deadline,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        expect: Collection[int] = (200,),
        transfer: bool = False,
    ) -> AsyncIterator[Reply]:
        """Ask, and give the answer while it comes.

        The deadline, and the registry's `timeout` unless the request itself takes long
        (`transfer`), bound the wait for the answer's head. GET and HEAD follow redirects. Raises
        `NotFound` for 404, `Overloaded` for 429, 5xx and while the registry is to be left alone,
        `Rejected` for other statuses that are not expected, `Unreachable` when there was no answer.
        """
        bound = deadline if transfer else deadline.at_most(self._to.timeout)
        request = _Request(method, url, headers or {}, body, bound)
        with self.in_use():
            response = await self._authorized(request, scope)
            reply = Reply(method, response, self._to.timeout)
            try:
                if response.status not in expect:
                    await self._fail(reply)
                yield reply
            finally:
                # Kept for the next request when the body was read to its end, closed otherwise.
                response.release()

    async def close(self) -> None:
        """Close all connections, for good."""
        self._closed = True
        await self._auth.close()
        for session in (self._trusted, self._guarded):
            if session is not None:
                await session.close()

    # -- one request --------------------------------------------------------------------------

    async def _authorized(self, request: _Request, scope: str) -> aiohttp.ClientResponse:
        self._check_pause(request)
        header = None
        if same_origin(request.url, self._to.base):
            header = await self._auth.authorization(scope, request.deadline)
        response = await self._redirected(request, header)
        # Who was redirected to has no say in what the registry is sent.
        if response.status != 401 or not same_origin(response.url, self._to.base):
            return response
        asked = response.headers.getall("WWW-Authenticate", [])
        response.release()
        header = await self._auth.renewed(scope, asked, header, request.deadline)
        return await self._redirected(request, header)

    async def _redirected(
        self, request: _Request, authorization: str | None
    ) -> aiohttp.ClientResponse:
        url = request.url
        for _ in range(MAX_REDIRECTS + 1):
            own = same_origin(url, self._to.base)
            response = await self._send(request.send_to(url, authorization if own else None))
            if own:
                self._observe(request.method, response)
            if response.status not in _REDIRECTS or request.method not in ("GET", "HEAD"):
                return response
            location = response.headers.get("Location", "")
            response.release()
            try:
                url = target(url, location)
            except Refused as error:
                detail = f"its redirect is not followed: {error}"
                raise Rejected(request.method, shown(url), detail) from None
        raise Rejected(request.method, shown(request.url), f"more than {MAX_REDIRECTS} redirects")

    async def _send(self, request: _Request, *, trusted: bool = False) -> aiohttp.ClientResponse:
        remaining = request.deadline.remaining()
        name = shown(request.url)
        if remaining <= 0:
            raise Unreachable(request.method, name, "not asked: the deadline has passed")
        own = self._to.configured and same_origin(request.url, self._to.base)
        body = request.body
        with mapped(request.method, name, f"no answer within {remaining:.1f} s"):
            async with asyncio.timeout(remaining):
                session = await self._session(guarded=not (trusted or own))
                return await session.request(
                    request.method,
                    request.url,
                    headers=request.headers,
                    data=body if isinstance(body, bytes | None) else body(),
                    allow_redirects=False,
                )

    async def _ask_token(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        data: bytes | None,
        limit: int,
        trusted: bool,
        deadline: Deadline,
    ) -> tuple[int, Mapping[str, str], bytes]:
        request = _Request(method, url, headers, data, deadline)
        response = await self._send(request, trusted=trusted)
        if response.status == 429:
            # Without a token nothing can be asked of the registry, either.
            self._limit.observe(response.status, response.headers, self._clock())
        reply = Reply(method, response, self._to.timeout)
        try:
            with mapped(method, reply.url, "the answer broke off"):
                async with asyncio.timeout(deadline.remaining()):
                    return reply.status, reply.headers, await reply.whole(limit)
        finally:
            response.release()

    def _check_pause(self, request: _Request) -> None:
        seconds = self._limit.wait(self._clock())
        if seconds > 0:
            HELD_BACK.labels(self._to.label).inc()
            raise Overloaded(
                request.method,
                shown(request.url),
                f"not asked: the registry limits our rate, for another {seconds:.0f} s",
                status=429,
                retry_after=seconds,
            )

    def _observe(self, method: str, response: aiohttp.ClientResponse) -> None:
        self._limit.observe(response.status, response.headers, self._clock())
        REQUESTS.labels(self._to.label, method, str(response.status)).inc()
        if self._limit.quota.remaining is not None:
            _QUOTA.labels(self._to.label).set(self._limit.quota.remaining)

    async def _fail(self, reply: Reply) -> None:
        """Raise what an unexpected status means."""
        content = b""
        if reply.method != "HEAD":
            try:
                async with asyncio.timeout(self._to.timeout):
                    content = await reply.whole(_MAX_ERROR)
            except (CallFailed, TimeoutError):
                content = b"(its text could not be read)"
        try:
            body = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            body = None
        transient = reply.status == 429 or reply.status >= 500
        kind: type[CallFailed] = Overloaded if transient else Rejected
        if reply.status == 404:
            kind = NotFound
        message = _message(reply.status, content, body)
        if reply.status == 401:
            message += " (it does not take our credentials, or wants some that are not configured)"
        after = self._limit.wait(self._clock()) or None
        raise kind(
            reply.method,
            reply.url,
            message,
            status=reply.status,
            body=body,
            retry_after=after if transient else None,
        )

    # -- sessions -----------------------------------------------------------------------------

    async def _session(self, *, guarded: bool) -> aiohttp.ClientSession:
        """A session for hosts that the operator named, or the one for public addresses only."""
        guarded = guarded and not self._to.allow_private
        async with self._opening:
            session = self._guarded if guarded else self._trusted
            if self._closed:
                raise aiohttp.ClientConnectionError("this client of a registry is closed")
            if session is None:
                session = await self._new_session(guarded=guarded)
                if guarded:
                    self._guarded = session
                else:
                    self._trusted = session
        return session

    async def _new_session(self, *, guarded: bool) -> aiohttp.ClientSession:
        context: ssl.SSLContext | bool = True
        if self._to.ca is not None:
            context = await in_thread(ssl.create_default_context, cafile=str(self._to.ca))
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=CONNECTIONS,
                keepalive_timeout=30,
                ssl=context,
                socket_factory=public_socket if guarded else None,
            ),
            # Blobs are taken as they are stored: no transfer in another encoding.
            headers={"User-Agent": "shoal", "Accept-Encoding": "identity"},
            skip_auto_headers=["Content-Type"],
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT, sock_read=self._to.timeout
            ),
        )


@contextmanager
def mapped(method: str, url: str, late: str) -> Iterator[None]:
    """Turn what the HTTP library and the system raise into failures of calls."""
    try:
        yield
    except CallFailed:
        raise
    except TimeoutError as error:
        raise Unreachable(method, url, late) from error
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, RefusedAddress):
            raise Rejected(method, url, f"not asked: {error.os_error.strerror}") from None
        raise Unreachable(method, url, error.os_error.strerror or str(error.os_error)) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unreachable(method, url, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _message(status: int, content: bytes, body: object) -> str:
    try:
        errors = body["errors"]  # type: ignore[index]
        return "; ".join(f"{error['code']}: {error['message']}" for error in errors)[:_DETAIL]
    except (TypeError, KeyError):
        text = content[:_DETAIL].decode(errors="replace").strip()
        return text or f"status {status} and an empty body"
