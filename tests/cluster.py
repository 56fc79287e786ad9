# SPDX-License-Identifier: Apache-2.0
"""A whole cluster for a test: `shoal up` as a subprocess, its services to be killed and restarted.

Everything is bounded and synchronous, so that fixtures of any scope and all tests can use it; an
async test that must not block its loop calls it through `asyncio.to_thread`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import psutil
import yaml

READY_WITHIN: Final = 60.0
"""Seconds that a start may take on a machine busy with other tests; alone it takes under 5."""

STOP_WITHIN: Final = 20.0

_GLANCE: Final = 0.05
"""Seconds between two looks at a ready file or a readiness answer."""


class ClusterFailed(AssertionError):
    """The cluster did not do what the test needs; the message holds the ends of all logs."""


@dataclass(frozen=True)
class AgentUrls:
    """Base URLs of one agent."""

    registry: str
    admin: str


class RunningCluster:
    """A cluster that is ready. Use `RunningCluster.start`, which also stops it."""

    def __init__(self, folder: Path, supervisor: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self._supervisor = supervisor
        self._restarted: dict[str, subprocess.Popen[bytes]] = {}
        document = self._wait_ready_file()
        self.proxies: list[str] = document["proxies"]
        self.origins: list[str] = document["origins"]
        self.trackers: list[str] = document["trackers"]
        self.build_indexes: list[str] = document["build_indexes"]
        self.agents = [AgentUrls(**agent) for agent in document["agents"]]
        self.pids: dict[str, int] = document["pids"]

    @classmethod
    @contextlib.contextmanager
    def start(
        cls,
        folder: Path,
        *,
        origins: int = 3,
        agents: int = 2,
        options: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> Iterator[RunningCluster]:
        """Run `shoal up` with its data in `folder`, and stop all of it on the way out.

        `config` is laid over what `shoal up` generates, by role or by service; `options` are handed
        on. Raises `ClusterFailed` when it does not become ready.
        """
        folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "shoal", "up", "--data-dir", str(folder)]
        argv += ["--origins", str(origins), "--agents", str(agents)]
        argv += ["--ready-file", str(_ready_file(folder)), *options]
        if config is not None:
            overrides = folder / "overrides.yaml"
            overrides.write_text(yaml.safe_dump(dict(config)))
            argv += ["--config", str(overrides)]
        with _supervisor_log(folder).open("wb") as log:
            supervisor = _spawn(argv, log)
        cluster: RunningCluster | None = None
        try:
            cluster = cls(folder, supervisor)
            yield cluster
        finally:
            if cluster is None:
                _stop(supervisor)
            else:
                cluster.stop()

    @property
    def proxy(self) -> str:
        """Base URL of the first proxy."""
        return self.proxies[0]

    def log_path(self, service: str) -> Path:
        """Where `service` (`origin-0`) logs."""
        return self.folder / "logs" / f"{service}.log"

    def config_path(self, service: str) -> Path:
        """The config that `shoal up` generated for `service`."""
        return self.folder / "config" / f"{service}.yaml"

    def data_dir(self, service: str) -> Path:
        """Where `service` keeps what it stores."""
        return self.folder / "data" / service

    def base_url(self, service: str) -> str:
        """Where `service` answers `/health`, `/readiness` and `/metrics`."""
        role, _, number = service.rpartition("-")
        if role == "agent":
            return self.agents[int(number)].admin
        urls = {
            "proxy": self.proxies,
            "origin": self.origins,
            "tracker": self.trackers,
            "build-index": self.build_indexes,
        }
        return urls[role][int(number)]

    def kill(self, service: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to `service` and wait until its process has gone."""
        child = self._restarted.pop(service, None)
        pid = self.pids[service] if child is None else child.pid
        os.kill(pid, number)
        try:
            if child is not None:
                child.wait(STOP_WITHIN)
            else:
                # `shoal up` is the parent, and reaps it.
                psutil.Process(pid).wait(STOP_WITHIN)
        except psutil.NoSuchProcess:
            pass
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            raise self._failed(
                f"{service} (pid {pid}) runs on {STOP_WITHIN} s after {number.name}"
            ) from None

    def restart(self, service: str, *, within: float = READY_WITHIN) -> None:
        """Start `service`, which was killed, as its own process with the same config."""
        role = service.rpartition("-")[0]
        argv = [sys.executable, "-m", "shoal", role, "--config", str(self.config_path(service))]
        with self.log_path(service).open("ab") as log:
            child = _spawn(argv, log)
        self._restarted[service] = child
        self.pids[service] = child.pid
        url = f"{self.base_url(service)}/readiness"
        glances = int(within / _GLANCE)
        for _ in range(glances):
            if _answers_200(url):
                return
            if _exited(child):
                raise self._failed(f"{service}, restarted, ended with {child.returncode}")
        raise self._failed(f"{service}, restarted, is not ready after {within} s")

    def stop(self) -> None:
        """Stop everything. Raises `ClusterFailed` when `shoal up` had to be killed."""
        for child in self._restarted.values():
            _stop(child)
        self._restarted.clear()
        if not _stop(self._supervisor):
            raise self._failed(f"`shoal up` did not stop within {STOP_WITHIN} s of SIGTERM")

    def tails(self, lines: int = 25) -> str:
        """The ends of all logs, for a failure's report."""
        logs = [_supervisor_log(self.folder), *sorted((self.folder / "logs").glob("*.log"))]
        parts = []
        for log in logs:
            if log.exists():
                tail = log.read_text(errors="replace").splitlines()[-lines:]
                parts.append("\n".join([f"--- {log.name}", *tail]))
        return "\n".join(parts)

    def _wait_ready_file(self) -> Any:
        ready_file = _ready_file(self.folder)
        for _ in range(int(READY_WITHIN / _GLANCE)):
            if ready_file.exists():
                return json.loads(ready_file.read_text())
            if _exited(self._supervisor):
                raise self._failed(f"`shoal up` ended with {self._supervisor.returncode}")
        raise self._failed(f"`shoal up` is not ready after {READY_WITHIN} s")

    def _failed(self, what: str) -> ClusterFailed:
        return ClusterFailed(f"{what}\n{self.tails()}")


def _ready_file(folder: Path) -> Path:
    return folder / "ready.json"


def _supervisor_log(folder: Path) -> Path:
    return folder / "up.log"


def _spawn(argv: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def _exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended; gives it a glance's time to do so."""
    try:
        process.wait(_GLANCE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> bool:
    """SIGTERM, and SIGKILL when that does not do; whether the first did."""
    process.terminate()
    try:
        process.wait(STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def _answers_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
