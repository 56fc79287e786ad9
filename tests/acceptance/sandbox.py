# SPDX-License-Identifier: Apache-2.0
"""Where client commands run: folders, environment and mounts of their own, which vanish with it.

Clients keep things in fixed places: the blob cache of skopeo and podman in /var/lib/containers,
shim sockets in /run/containerd, plug-ins in /opt/containerd. Behind a private mount namespace these
are folders of the sandbox, so one run cannot change what the next one sends, and nothing is left on
the machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Final

from tests.missing_clients import find_command

_COVERED: Final = ("opt", "run", "var/lib")
_COVER: Final = f"""\
for folder in {" ".join(_COVERED)}; do mount --bind "$1/$folder" "/$folder" || exit; done
shift && exec "$@"
"""
_PRIVATE_MOUNTS: Final = ("unshare", "--mount", "--propagation", "private")


class CommandFailed(AssertionError):
    """A client ended with an error, or not in time; the message holds all it said."""


class Sandbox:
    """Runs commands whose files all lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder / "home"
        (home / "docker").mkdir(parents=True, exist_ok=True)
        # podman insists that the file exists once DOCKER_CONFIG points to its folder.
        (home / "docker" / "config.json").write_text("{}")
        for covered in (*_COVERED, "run/lock"):
            (folder / covered).mkdir(parents=True, exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        self._environment = inherited | {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "HOME": str(home),
            "TMPDIR": str(folder),
            "XDG_CONFIG_HOME": str(home),
            "XDG_DATA_HOME": str(home),
            "DOCKER_CONFIG": str(home / "docker"),
        }

    def run(
        self, *argv: str, timeout: float = 90, environment: dict[str, str] | None = None
    ) -> str:
        """Run a command to its end and return its standard output, stripped.

        Raises `CommandFailed` when it ends with another code than 0 or needs more than `timeout`
        seconds.
        """
        __tracebackhide__ = True
        process = subprocess.Popen(
            self._confined(argv),
            env=self._environment | (environment or {}),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            raise CommandFailed(
                _report(argv, f"not done after {timeout} s", stdout, stderr)
            ) from None
        if process.returncode != 0:
            raise CommandFailed(_report(argv, f"exit code {process.returncode}", stdout, stderr))
        return stdout.strip()

    def spawn(self, *argv: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a daemon as the leader of its own process group."""
        return subprocess.Popen(
            self._confined(argv),
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _confined(self, argv: Sequence[str]) -> list[str]:
        if not _can_confine():
            return list(argv)
        return [*_PRIVATE_MOUNTS, "sh", "-c", _COVER, "sh", str(self.folder), *argv]


@cache
def _can_confine() -> bool:
    if os.geteuid() != 0 or find_command("unshare") is None:
        return False
    probe = subprocess.run([*_PRIVATE_MOUNTS, "true"], capture_output=True, check=False)
    return probe.returncode == 0


def _report(argv: Sequence[str], what: str, stdout: str, stderr: str) -> str:
    return f"{' '.join(argv)}: {what}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
