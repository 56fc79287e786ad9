# SPDX-License-Identifier: Apache-2.0
"""A real Redis for a test, in a folder of its own: killed, frozen and started again at will."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.missing_clients import find_command

_READY_WITHIN: Final = 20.0


class RedisServer:
    """One redis-server. Use `RedisServer.start`, which also stops it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def start(cls, folder: Path) -> Iterator[RedisServer]:
        """Run a server that keeps nothing on disk, and stop it on the way out."""
        folder.mkdir(parents=True, exist_ok=True)
        server = cls(folder)
        server.run()
        try:
            yield server
        finally:
            server.kill()

    @property
    def url(self) -> str:
        """As in the tracker's config."""
        return f"redis://127.0.0.1:{self._port}/0"

    def run(self) -> None:
        """Start it; empty, as it saves nothing."""
        command = find_command("redis-server")
        assert command is not None, "the test lacks the mark `client('redis')`"
        argv = [command, "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*argv, "--dir", str(self._folder)], stdout=log, stderr=log
            )
        ends = time.monotonic() + _READY_WITHIN
        while not self._answers():
            assert self._process.poll() is None, "redis-server ended; see its log"
            assert time.monotonic() < ends, f"redis-server is not ready after {_READY_WITHIN} s"

    def kill(self) -> None:
        """End it at once; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """From now on it takes connections and answers nothing, until it is killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
