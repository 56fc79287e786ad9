# SPDX-License-Identifier: Apache-2.0
"""One service as a child process: started in its own session, watched, and ended within a bound."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TAIL_LINES = 5
_TAIL_BYTES = 8192


class ServiceProcess:
    """A running ``shoal <role>``.

    `on_exit` is called once, in the event loop, when the process has ended for whatever reason.
    """

    def __init__(
        self,
        name: str,
        role: str,
        *,
        config_path: Path,
        log_path: Path,
        on_exit: Callable[[ServiceProcess], None],
        flags: Sequence[str] = (),
        launcher: Sequence[str] = (),
    ) -> None:
        """`launcher`: a command line that goes before the service's own, and becomes it."""
        self.name = name
        self.log_path = log_path
        self._on_exit = on_exit
        self._exited = asyncio.Event()
        with log_path.open("ab") as log:
            # Its own session: a Ctrl-C at the terminal reaches the supervisor alone, which then
            # stops the services in its own way. `--die-with` covers a supervisor that is killed.
            self._popen = subprocess.Popen(
                [
                    *launcher,
                    *(sys.executable, "-m", "shoal", role, "--config", str(config_path)),
                    *("--die-with", str(os.getpid())),
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self._popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Its process id, which stays its own after it ended."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._exited.is_set()

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._exited.wait()

    def terminate(self) -> None:
        """Ask it to drain and stop (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and whatever it started, at once (SIGKILL to its process group)."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def describe_exit(self) -> str:
        """One line: which process, how it ended, and where its log is."""
        status = self._popen.returncode
        if status is None:
            how = "is running"
        elif status < 0:
            how = f"was ended by {_signal_name(-status)}"
        else:
            how = f"exited with status {status}"
        return f"{self.name} (pid {self.pid}) {how}; log: {self.log_path}"

    def log_tail(self) -> list[str]:
        """Return the last lines of its log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError as error:
            return [f"(cannot read {self.log_path}: {error.strerror})"]
        return text.splitlines()[-TAIL_LINES:]

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(number)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._popen.wait()
        self._exited.set()
        self._on_exit(self)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
