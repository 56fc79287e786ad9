# SPDX-License-Identifier: Apache-2.0
"""Origins alone, as real processes: to be killed, stopped, damaged and started again by a test."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from shoal.cluster.layout import BLOCK
from shoal.cluster.ports import reserve
from shoal.model.digest import Digest
from shoal.ring.config import OriginsConfig
from shoal.ring.rendezvous import owners

READY_WITHIN = 30.0
STOP_WITHIN = 15.0


class Origin:
    """One origin process."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.host: str = config["listen"]
        self.data = Path(config["data_dir"])
        self.log = folder / "origin.log"
        self._config = folder / "origin.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix: list[str] = []
        """Before the command that starts it."""
        folder.mkdir(parents=True)
        self._config.write_text(yaml.safe_dump(config))

    def start(self) -> None:
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "shoal",
            "origin",
            "--config",
            str(self._config),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_ready(self, within: float = READY_WITHIN) -> None:
        until = time.monotonic() + within
        while not self._ready():
            assert self.running, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url("/readiness"), timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    def path(self, digest: Digest) -> Path:
        return self.data / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex

    def leftovers(self) -> list[str]:
        """Files of uploads that are under way, or were left behind."""
        return os.listdir(self.data / "incoming") + os.listdir(self.data / "uploads")

    def freeze(self) -> None:
        """The process no longer answers, and nobody is told."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> int:
        """Send a signal; returns the exit status."""
        process = self.process
        assert process is not None
        if process.poll() is None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
        return process.wait(STOP_WITHIN)

    def ended(self) -> int:
        """Wait until the process has ended by itself; returns the exit status."""
        assert self.process is not None
        return self.process.wait(STOP_WITHIN)


class Ring:
    """The origins that make up a ring."""

    def __init__(self, origins: list[Origin], config: OriginsConfig) -> None:
        self.origins = origins
        self.config = config

    def origin(self, host: str) -> Origin:
        return next(origin for origin in self.origins if origin.host == host)

    def in_order(self, digest: Digest) -> list[Origin]:
        """All members, the first owner first."""
        return [self.origin(host) for host in owners(digest, self.config.hosts)]

    def holders(self, digest: Digest) -> set[str]:
        """Hosts that have the blob's file."""
        return {origin.host for origin in self.origins if origin.path(digest).exists()}

    def revive(self, within: float = READY_WITHIN) -> None:
        """Start those that a test has killed."""
        down = [origin for origin in self.origins if not origin.running]
        for origin in down:
            origin.start()
        for origin in down:
            origin.wait_ready(within)


@contextmanager
def running_ring(
    folder: Path,
    *,
    origins: int = 3,
    replicas: int = 3,
    write_quorum: int = 2,
    ready_within: float = READY_WITHIN,
    health: dict[str, Any] | None = None,
    **more: Any,
) -> Iterator[Ring]:
    """Start the origins, and stop them at the end. `more` goes into every origin's config.

    `health`: how members of the ring are checked, by the test as well.
    """
    with reserve(BLOCK) as ports:
        hosts = [f"127.0.0.1:{ports.first + 1 + 2 * n}" for n in range(origins)]
        ring = {
            "hosts": hosts,
            "replicas": replicas,
            "write_quorum": write_quorum,
            "health": health or {},
        }
        members = []
        for n, host in enumerate(hosts):
            config = {
                "listen": host,
                "peer": {"listen": f"127.0.0.1:{ports.first + 2 + 2 * n}"},
                "data_dir": str(folder / f"origin-{n}" / "data"),
                "origins": ring,
                **more,
            }
            members.append(Origin(folder / f"origin-{n}", config))
        started = Ring(members, OriginsConfig.model_validate(ring))
        try:
            started.revive(ready_within)
            yield started
        finally:
            for member in members:
                if member.process is not None:
                    member.kill()


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Wait for something that another process does."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 another process makes it true
            await asyncio.sleep(0.02)
