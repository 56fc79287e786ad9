# SPDX-License-Identifier: Apache-2.0
"""Distribution's registry, Debian's package of it, as an upstream that a test stops and starts."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from shoal.cluster.layout import BLOCK, HOST
from shoal.cluster.ports import reserve
from tests.missing_clients import find_command

USER: Final = "reader"
PASSWORD: Final = "s3cret"
_HTPASSWD: Final = f"{USER}:$2b$04$E3k9839F8U46Qv8n7Dp6aO5iCeVln3y1DsLfCwO9uFfZmHZTN3i2e\n"

_UP_WITHIN: Final = 20.0
_GLANCE: Final = 0.05
_STOP_WITHIN: Final = 10.0


class Distribution:
    """One registry; what it stores and its port outlive a stop. Use `run`."""

    def __init__(self, folder: Path, port: int, *, protected: bool) -> None:
        self.url = f"http://{HOST}:{port}"
        self._port = port
        self._log = folder / "registry.log"
        self._config = folder / "registry.yml"
        self._config.write_text(_config(folder, port, protected=protected))
        (folder / "htpasswd").write_text(_HTPASSWD)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def run(cls, folder: Path, *, protected: bool = False) -> Iterator[Self]:
        """Run it while the body runs; `protected` demands `USER` and `PASSWORD` of everyone."""
        folder.mkdir(parents=True)
        with reserve(BLOCK) as ports:
            registry = cls(folder, ports.first + 1, protected=protected)
            try:
                registry._start()
                yield registry
            finally:
                registry._stop()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Connections to it are refused while the body runs."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and answers nothing while the body runs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _start(self) -> None:
        command = find_command("docker-registry")
        assert command is not None
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [command, "serve", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        for _ in range(int(_UP_WITHIN / _GLANCE)):
            with contextlib.suppress(OSError), socket.create_connection((HOST, self._port), 1.0):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GLANCE)
                raise AssertionError(f"docker-registry ended:\n{self._log.read_text()}")
        raise AssertionError(f"docker-registry is not up after {_UP_WITHIN} s")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_WITHIN)
        self._process = None


def _config(folder: Path, port: int, *, protected: bool) -> str:
    lines = [
        "version: 0.1",
        f"storage: {{filesystem: {{rootdirectory: {folder}/storage}}, delete: {{enabled: true}}}}",
        f'http: {{addr: "{HOST}:{port}"}}',
    ]
    if protected:
        lines.append(f"auth: {{htpasswd: {{realm: shoal, path: {folder}/htpasswd}}}}")
    return "\n".join(lines) + "\n"
