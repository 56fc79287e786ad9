# SPDX-License-Identifier: Apache-2.0
"""Listen, serve until told to stop, and drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shoal.config.model import Clients
from shoal.config.units import join_address, split_address
from shoal.web.gate import guard
from shoal.web.process import CannotListen, Stop, notify
from shoal.web.tls import Tls

READ_BUFFER = 64 * 1024
"""Bytes of a request's body that wait for its handler; the sender waits beyond about twice that.

What the handler was given last is as much again, and one read of the socket more: 200 uploads that
wait for the disk have 150 MB. Four times the buffer took 440 MB for a tenth less CPU.
"""

KEEP_ALIVE = 75.0
"""Seconds after which a connection without a whole request is closed."""

BACKLOG = 1024
HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a client has for the handshake of TLS."""

FAREWELL_TIMEOUT = 1.0
"""Seconds that the end of a TLS connection waits for the other side to say so, too."""

CANCEL_GRACE = 1.0
"""Seconds that a request has to clean up after it was cancelled."""

IN_FLIGHT = web.AppKey("shoal_in_flight", dict[asyncio.Task[Any], web.Request])
"""The requests that an application is answering, by their tasks."""

log = structlog.get_logger()


class Listener(NamedTuple):
    """An application, the address it is served on, and the config key of that address.

    With TLS (`Tls.on`), `clients` without a certificate may do what `shoal.web.gate` says.
    """

    app: web.Application
    address: str
    key: str = "listen"
    tls: Tls | None = None
    clients: Clients = "required"

    @property
    def secured(self) -> bool:
        """Whether it speaks TLS."""
        return self.tls is not None and self.tls.on


async def serve(
    listeners: Sequence[Listener | tuple[web.Application, str]], *, stop: Stop, grace: float
) -> None:
    """Serve until `stop` is set; then refuse new connections and drain for `grace` seconds at most.

    Tells systemd and the log when all listen. Raises `CannotListen`.
    """
    async with listening(listeners, grace=grace) as addresses:
        log.info("listening", addresses=", ".join(addresses))
        notify("READY=1")
        await _until(stop, {listener.tls for listener in map(_listener, listeners)})
        notify("STOPPING=1")
        log.info("stopping")


async def _until(stop: Stop, followed: set[Tls | None]) -> None:
    """Wait for the stop; until then follow the files of certificates."""
    following = [asyncio.create_task(tls.follow()) for tls in followed if tls is not None]
    try:
        await stop.wait()
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


def _listener(entry: Listener | tuple[web.Application, str]) -> Listener:
    return Listener(*entry)


_TURNS_TO_BEGIN = 3


@asynccontextmanager
async def listening(
    listeners: Sequence[Listener | tuple[web.Application, str]], *, grace: float
) -> AsyncIterator[list[str]]:
    """Serve while the block runs, then drain; gives the addresses, with the ports the system chose.

    Raises `CannotListen`.
    """
    started: list[tuple[web.AppRunner, Listener]] = []
    accepting: list[asyncio.Server] = []
    try:
        for entry in listeners:
            listener = _listener(entry)
            if listener.secured:
                guard(listener.app, listener.clients)
            runner = web.AppRunner(
                listener.app,
                read_bufsize=READ_BUFFER,
                keepalive_timeout=KEEP_ALIVE,
                auto_decompress=False,
                access_log=None,
                logger=_http_log(),
                shutdown_timeout=0.5,
            )
            started.append((runner, listener))
            await runner.setup()
            accepting.append(await _listen(runner, listener))
        yield [_bound(server) for server in accepting]
    finally:
        await _stop_accepting(accepting)
        await _drain(started, grace)


async def _listen(runner: web.AppRunner, listener: Listener) -> asyncio.Server:
    host, port = split_address(listener.address)
    loop = asyncio.get_running_loop()
    tls: dict[str, Any] = {}
    if listener.tls is not None and listener.secured:
        tls = {
            "ssl": listener.tls.server,
            "ssl_handshake_timeout": HANDSHAKE_TIMEOUT,
            "ssl_shutdown_timeout": FAREWELL_TIMEOUT,
        }
    try:
        return await loop.create_server(
            cast("Any", runner.server), host, port, backlog=BACKLOG, **tls
        )
    except OSError as error:
        raise CannotListen(listener.address, listener.key, error) from error


def _bound(server: asyncio.Server) -> str:
    host, port = server.sockets[0].getsockname()[:2]
    return join_address(host, port)


async def _stop_accepting(accepting: Sequence[asyncio.Server]) -> None:
    """Refuse new connections.

    One that was accepted just now is known to the server three turns later, and requests that are
    parsed already begin: both are to be drained like others. So asyncio's servers (uvloop's have no
    readers) are closed only then: a closed one drops its new connections without closing them.
    """
    loop = asyncio.get_running_loop()
    for server in accepting:
        for listening_socket in server.sockets:
            loop.remove_reader(listening_socket.fileno())
    for _ in range(_TURNS_TO_BEGIN):
        await asyncio.sleep(0)
    for server in accepting:
        server.close()


async def _drain(started: Sequence[tuple[web.AppRunner, Listener]], grace: float) -> None:
    tasks = set()
    for runner, listener in started:
        requests = listener.app.get(IN_FLIGHT, {})
        tasks |= set(requests)
        _close_idle(runner, {request.transport for request in requests.values()})
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        if late:
            log.warning("requests cancelled", count=len(late), after_s=grace)
            await asyncio.wait(late, timeout=CANCEL_GRACE)
    for runner, _ in started:
        await runner.cleanup()


def _close_idle(runner: web.AppRunner, active: set[asyncio.Transport | None]) -> None:
    """Close connections that wait for a request; the others close when those are drained.

    Not by the server's own `pre_shutdown`: it drops what is still to come of a body.
    """
    if runner.server is None:
        return
    for connection in runner.server.connections:
        if connection.transport not in active:
            connection.force_close()


class _OneLine(logging.Filter):
    """What is not HTTP (a TLS hello, a scanner) is the sender's fault: one line, no traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg = "not HTTP: request from %s refused: %s"
            reason = error.message.splitlines()[0] if error.message else type(error).__name__
            record.args = (*_first(record.args), reason)
            record.exc_info = record.exc_text = None
        return True


def _first(args: object) -> tuple[object, ...]:
    return args[:1] if isinstance(args, tuple) else ("?",)


def _http_log() -> logging.Logger:
    logger = logging.getLogger("shoal.http")
    if not logger.filters:
        logger.addFilter(_OneLine())
    return logger
