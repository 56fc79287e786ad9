# SPDX-License-Identifier: Apache-2.0
"""Upload requests that reach another proxy than the one that holds the session.

Behind a load balancer the requests of one upload come in at any proxy. The id of the session says
which proxy holds it; the others hand the request on and the answer back as they are. A host is
never taken from a request: only what the own config calls a neighbour is called, and a request that
was handed on once is not handed on again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from shoal.model.errors import ApiError, Unavailable
from shoal.proxy.upload_ids import UploadId, name_hash
from shoal.registry.base import body_of
from shoal.registry.ports import ClientGone, ClientStalled
from shoal.web.deadline import Deadline
from shoal.web.requests import deadline_of
from shoal.web.tls import Tls

FORWARDED = "Shoal-Forwarded-By"
"""Request header: the name of the proxy that handed the request on."""

CONNECT_TIMEOUT = 3.0
"""Seconds for a connection to the other proxy."""

MARGIN = 3.0
"""Seconds by which the other proxy, which bounds the same waits, may be ahead with its answer."""

RETRY_AFTER = 5
"""Seconds after which a client should try again while the other proxy is down."""

MAX_ANSWER = 1024 * 1024
"""Most bytes of an answer; those about uploads have a few hundred."""

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_OF_REQUESTS = _HOP_BY_HOP | {"host", "expect", Deadline.HEADER.lower(), FORWARDED.lower()}
_NOT_OF_ANSWERS = _HOP_BY_HOP | {"content-length", "date", "server"}
_NEVER_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

_Headers = CIMultiDict[str] | CIMultiDictProxy[str]


class UploadForwarding:
    """Hands requests for sessions of other proxies on to them."""

    def __init__(
        self,
        name: str,
        neighbours: Sequence[str],
        *,
        idle_timeout: float,
        tls: Tls | None = None,
    ) -> None:
        """`name` and `neighbours` are ``host:port``.

        `idle_timeout`: seconds for which a body may pause. `tls`: how the neighbours are called.
        """
        self._ssl = None if tls is None else tls.client
        self._name = name
        self._hosts = {name_hash(host): host for host in neighbours if host != name}
        self._idle_timeout = idle_timeout
        self._session: aiohttp.ClientSession | None = None

    def install(self, app: web.Application) -> None:
        """Put it before the handlers of the registry API, behind what renders errors."""
        app.middlewares.append(self._middleware())
        app.on_cleanup.append(self._close)

    def _middleware(self) -> Middleware:
        @web.middleware
        async def forwarding(request: web.Request, handler: Handler) -> web.StreamResponse:
            host = self._elsewhere(request)
            if host is None:
                return await handler(request)
            url = self._url(host, request)
            return await _Exchange(request, url, self._name, self._idle_timeout).run(self._open())

        return forwarding

    def _elsewhere(self, request: web.Request) -> str | None:
        """The neighbour that holds the request's upload; None when the own handlers answer.

        They also refuse what no proxy holds: malformed ids, those of another repository or of a
        proxy that is no neighbour, and what a neighbour wrongly took for an upload of this one.
        """
        if FORWARDED in request.headers:
            return None
        upload = UploadId.parse(request.match_info.get("upload", ""))
        if upload is None or not upload.is_of(request.match_info["name"]):
            return None
        return self._hosts.get(upload.owner)

    def _url(self, host: str, request: web.Request) -> URL:
        scheme = "http" if self._ssl is None else "https"
        return URL(f"{scheme}://{host}{request.rel_url.raw_path_qs}", encoded=True)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A connection for each request: on a kept one that the other side has closed
                # meanwhile, a request would fail whose body cannot be sent again.
                connector=aiohttp.TCPConnector(limit=0, force_close=True, ssl=self._ssl or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=_NEVER_ADDED,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            )
        return self._session

    async def _close(self, _app: web.Application) -> None:
        if self._session is not None:
            await self._session.close()


class _Exchange:
    """One request on its way to another proxy, and the answer on its way back."""

    def __init__(self, request: web.Request, url: URL, name: str, idle_timeout: float) -> None:
        self._request = request
        self._url = url
        self._name = name
        self._idle_timeout = idle_timeout
        self._budget = deadline_of(request).remaining()
        self._stored = 0
        self._sent = 0
        self._reading: asyncio.Future[bytes | None] | None = None
        self._failure: ApiError | None = None

    async def run(self, session: aiohttp.ClientSession) -> web.Response:
        """Return the other proxy's answer; raise `Unavailable`, `ClientGone`, `ClientStalled`."""
        try:
            if self._request.method == "PUT":
                self._stored = await self._received(session)
            return await self._ask(session)
        except (aiohttp.ClientError, OSError) as error:
            raise self._failure or self._unavailable(error) from error

    async def _ask(self, session: aiohttp.ClientSession) -> web.Response:
        async with asyncio.timeout(self._patience()) as limit:
            body = self._body(limit) if self._request.body_exists else None
            try:
                async with session.request(
                    self._request.method,
                    self._url,
                    headers=self._headers(_passed_on(self._request.headers, _NOT_OF_REQUESTS)),
                    data=body,
                    allow_redirects=False,
                ) as answer:
                    # Also when it comes before the whole body was sent: it is final.
                    limit.reschedule(_at(self._idle_timeout))
                    content = await _whole(answer)
                    headers = _passed_on(answer.headers, _NOT_OF_ANSWERS)
                    return web.Response(status=answer.status, headers=headers, body=content)
            finally:
                await self._stop_reading()

    async def _received(self, session: aiohttp.ClientSession) -> int:
        """Bytes that the session holds; 0 when it cannot be asked."""
        url = self._url.with_query(None)
        async with (
            asyncio.timeout(self._patience()),
            session.get(url, headers=self._headers(CIMultiDict()), allow_redirects=False) as answer,
        ):
            last = answer.headers.get("Range", "").rpartition("-")[2]
            return int(last) + 1 if last.isascii() and last.isdigit() and len(last) < 20 else 0

    def _headers(self, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        headers[FORWARDED] = self._name
        headers[Deadline.HEADER] = Deadline.after(self._budget).header_value()
        return headers

    def _patience(self) -> float:
        """Seconds for an answer once the body was sent: the other proxy bounds the storing so."""
        stored = self._stored + self._sent
        return Deadline.after(self._budget + MARGIN).with_transfer(stored).remaining()

    async def _body(self, limit: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The client's body, of which no more is held than one read.

        The client's pauses are bounded, and those of the other proxy, which takes it; the wait for
        the answer begins at its end.
        """
        source = body_of(self._request)
        while True:
            limit.reschedule(_at(self._idle_timeout + MARGIN))
            self._reading = asyncio.ensure_future(anext(source, None))
            try:
                chunk = await self._reading
            except ClientGone as error:
                self._failure = error
                raise
            self._reading = None
            if chunk is None:
                break
            limit.reschedule(_at(self._idle_timeout + MARGIN))
            yield chunk
            self._sent += len(chunk)
        limit.reschedule(_at(self._patience()))

    async def _stop_reading(self) -> None:
        """Leave the client's body to the server, which reads what is left of it."""
        if self._reading is None:
            return
        if not self._reading.done():
            self._reading.cancel()
        await asyncio.wait([self._reading])

    def _unavailable(self, error: Exception) -> ApiError:
        if isinstance(error, TimeoutError) and self._reading is not None:
            return ClientStalled(self._sent, self._idle_timeout)
        upload = self._request.match_info["upload"]
        return Unavailable(
            f"upload {upload} is held by the proxy {self._url.authority}: "
            f"{_reason(error)} ({self._sent} bytes of this request were handed on); resume it when "
            "that proxy is back, or start the upload again",
            detail={"proxy": self._url.authority},
            retry_after=RETRY_AFTER,
        )


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > MAX_ANSWER:
            raise aiohttp.ClientPayloadError(f"its answer has more than {MAX_ANSWER} bytes")
    return bytes(content)


def _passed_on(headers: _Headers, without: Collection[str]) -> CIMultiDict[str]:
    """Headers for the other side: all but those of this connection (RFC 9110, section 7.6.1)."""
    named = {
        token.strip().lower()
        for line in headers.getall("Connection", ())
        for token in line.split(",")
    }
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in without and name.lower() not in named
    )


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, TimeoutError):
        return str(error) or "it did not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _at(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds
