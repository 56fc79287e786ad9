# SPDX-License-Identifier: Apache-2.0
"""A containerd and a dockerd of our own: private folders and sockets, no network, no CRI."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.acceptance.sandbox import CommandFailed, Sandbox

_UP_WITHIN: Final = 45.0
_STOP_WITHIN: Final = 20.0
_GLANCE: Final = 0.1
_CGROUPS: Final = Path("/sys/fs/cgroup")


class DaemonFailed(Exception):
    """A daemon does not run here; the message holds the end of its log."""


_CONTAINERD: Final = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
# A pull in one namespace must not find what another one has pulled.
[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = "isolated"
"""


def containerd_socket(folder: Path) -> Path:
    """Where the containerd of a sandbox in this folder listens."""
    return folder / "containerd.sock"


def docker_socket(folder: Path) -> Path:
    """Where the dockerd of a sandbox in this folder listens."""
    return folder / "docker.sock"


@contextlib.contextmanager
def containerd(sandbox: Sandbox) -> Iterator[str]:
    """Run containerd and yield its socket's path. Raises `DaemonFailed`."""
    folder = sandbox.folder
    socket = str(containerd_socket(folder))
    config = folder / "containerd.toml"
    config.write_text(_CONTAINERD.format(folder=folder, socket=socket))
    argv = ["containerd", "--config", str(config)]
    answers = ["ctr", "--address", socket, "--connect-timeout", "2s", "version"]
    with _daemon(sandbox, argv, answers):
        yield socket


@contextlib.contextmanager
def dockerd(sandbox: Sandbox, *, mirror: str) -> Iterator[str]:
    """Run dockerd, with `mirror` as Docker Hub's mirror, and yield its address.

    It starts a containerd of its own. Raises `DaemonFailed`.
    """
    folder = sandbox.folder
    address = f"unix://{docker_socket(folder)}"
    cgroup = f"{folder.parent.name}-docker"
    config = folder / "daemon.json"
    config.write_text(
        json.dumps(
            {
                "data-root": str(folder / "data"),
                "exec-root": str(folder / "exec"),
                "pidfile": str(folder / "docker.pid"),
                "deprecated-key-path": str(folder / "key.json"),
                "hosts": [address],
                "exec-opts": ["native.cgroupdriver=cgroupfs"],
                "cgroup-parent": cgroup,
                "bridge": "none",
                "iptables": False,
                "ip6tables": False,
                "ip-forward": False,
                "insecure-registries": ["127.0.0.0/8"],
                "registry-mirrors": [mirror],
            }
        )
    )
    argv = ["dockerd", "--config-file", str(config)]
    answers = ["docker", "--host", address, "version"]
    try:
        with _daemon(sandbox, argv, answers):
            yield address
    finally:
        # Under the root of a single hierarchy, or under each controller's.
        for left in (*_CGROUPS.glob(cgroup), *_CGROUPS.glob(f"*/{cgroup}")):
            left.rmdir()


@contextlib.contextmanager
def _daemon(sandbox: Sandbox, argv: Sequence[str], answers: Sequence[str]) -> Iterator[None]:
    """Run `argv` while the body runs, once the command `answers` succeeds."""
    log_path = sandbox.folder / f"{argv[0]}.log"
    with log_path.open("wb") as log:
        process = sandbox.spawn(*argv, log=log)
    try:
        _wait_up(sandbox, process, answers, lambda: _tail(log_path))
        yield
    finally:
        _stop(process)


def _wait_up(
    sandbox: Sandbox,
    process: subprocess.Popen[bytes],
    answers: Sequence[str],
    tail: Callable[[], str],
) -> None:
    said = "nothing"
    for _ in range(int(_UP_WITHIN / _GLANCE)):
        try:
            sandbox.run(*answers, timeout=10)
        except CommandFailed as failure:
            said = str(failure)
        else:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GLANCE)
            raise DaemonFailed(f"it ended with {process.returncode}:\n{tail()}")
    raise DaemonFailed(f"no answer within {_UP_WITHIN} s:\n{said}\n{tail()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # What it had started and did not stop, shims apart: those end with their containers.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
