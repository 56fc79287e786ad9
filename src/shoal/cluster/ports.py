# SPDX-License-Identifier: Apache-2.0
"""Blocks of ports that two clusters on one machine never share.

A listener on each block's first port is kept for the cluster's life: whoever finds it there takes
another block. Blocks lie below the range from which Linux takes the ports of outgoing connections,
so that no connection sits on a service's port when the service starts.
"""

from __future__ import annotations

import errno
import socket
from types import TracebackType
from typing import Self

from shoal.cluster.layout import BLOCK, HOST

FIRST = 10240
LAST = 32000


class PortsTaken(Exception):
    """No block of ports is free, or the one that was asked for is not."""


class PortBlocks:
    """Reserved ports; close them when the cluster is gone."""

    def __init__(self, first: int, guards: list[socket.socket]) -> None:
        self.first = first
        self._guards = guards

    def close(self) -> None:
        """Let others have the ports."""
        for guard in self._guards:
            guard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def reserve(size: int, base: int | None = None) -> PortBlocks:
    """Reserve `size` ports (a multiple of `BLOCK`) from `base`, or the lowest ones that are free.

    Raises `PortsTaken` naming the port that is in use, or the base from which they do not fit.
    """
    if base is not None:
        if not 1 <= base <= 65536 - size:
            raise PortsTaken(f"port base {base}: {size} ports from there do not lie in 1 to 65535")
        return _take(base, size)
    for first in range(FIRST, LAST - size + 1, BLOCK):
        try:
            return _take(first, size)
        except PortsTaken:
            continue
    raise PortsTaken(f"no {size} consecutive ports are free between {FIRST} and {LAST} on {HOST}")


def _take(first: int, size: int) -> PortBlocks:
    guards: list[socket.socket] = []
    try:
        for port in range(first, first + size):
            sock = _bind(port)
            if (port - first) % BLOCK:
                sock.close()
                continue
            guards.append(sock)
            _listen(sock, port)
    except BaseException:
        for guard in guards:
            guard.close()
        raise
    return PortBlocks(first, guards)


def _listen(sock: socket.socket, port: int) -> None:
    # Two binds may succeed before either listens; only one listener can.
    try:
        sock.listen(1)
    except OSError as error:
        raise PortsTaken(_taken(port)) from error


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # A port with connections of a past service in TIME_WAIT is free, as it is for the services.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))
    except OSError as error:
        sock.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            raise PortsTaken(_taken(port)) from error
        raise
    return sock


def _taken(port: int) -> str:
    return f"{HOST}:{port} is in use or not ours to use; choose another port base, or leave it out"
