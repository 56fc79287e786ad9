# SPDX-License-Identifier: Apache-2.0
"""Run one service as a process: its event loop, signals, and what is said when it cannot start."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Literal, NoReturn

import structlog

from shoal.web.tls import CannotSecure

log = structlog.get_logger()

_WHY = {
    errno.EADDRINUSE: "another process listens there; stop it, or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "ports below 1024 need a privilege that this process does not have",
}


_MADE = 10_000
"""Objects made and not freed before the interpreter looks for those that only know each other; by
default 700, at which an agent in a swarm spends 5 % of its time on that."""


class CannotListen(Exception):
    """An address of the config cannot be listened on; the message is one line."""

    def __init__(self, address: str, key: str, error: OSError) -> None:
        why = _WHY.get(error.errno or 0, error.strerror or str(error))
        super().__init__(f'cannot listen on {address} (config key "{key}"): {why}')


class Stop(asyncio.Event):
    """Set when the process is asked to stop, by a signal or by a part of it that cannot go on."""


def run(
    service_main: Callable[[Stop], Awaitable[None]], *, loop: Literal["uvloop", "asyncio"]
) -> None:
    """Run a service until it returns. SIGTERM and SIGINT set its `Stop`; the second one kills.

    Exits with status 1, after one clear line, when an address cannot be listened on or a file of
    the TLS config is of no use, and after a traceback when the service fails.
    """
    _collect_less()
    with asyncio.Runner(loop_factory=_loop_factory(loop)) as runner:
        try:
            runner.run(_with_signals(service_main))
        except (CannotListen, CannotSecure) as error:
            _exit(str(error))
        except OSError as error:
            if error.errno not in _WHY:
                _crash(error)
            _exit(f"cannot listen: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001 the last stop before the interpreter's own
            _crash(error)


def _collect_less() -> None:
    """Look for garbage in what a service makes while it runs, and less often.

    What was imported stays, and most of what comes is freed by its last reference.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_MADE)


async def _with_signals(service_main: Callable[[Stop], Awaitable[None]]) -> None:
    stop = Stop()
    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    await service_main(stop)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)) when it started this process; otherwise do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), address)
    except OSError as error:
        log.warning("cannot notify systemd", socket=address, why=str(error))


def _loop_factory(
    loop: Literal["uvloop", "asyncio"],
) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if loop == "asyncio":
        return None
    import uvloop  # noqa: PLC0415 services on plain asyncio need not load it

    return uvloop.new_event_loop


def _crash(error: Exception) -> NoReturn:
    log.error("the service failed", exc_info=error)
    raise SystemExit(1) from None


def _exit(line: str) -> NoReturn:
    print(line, file=sys.stderr)  # noqa: T201 for whoever started it, log or no log
    raise SystemExit(1) from None
