# SPDX-License-Identifier: Apache-2.0
"""Tests that need real registry clients, or a right of the machine: never skipped silently.

A test names clients with `@pytest.mark.client("skopeo", "docker")`, and what the machine must have
with `@pytest.mark.machine("ipv6")`. What is missing, and why, stands in the last lines of the run.
With `CI=true` a test whose client is missing fails instead; what the machine lacks is named there,
too, but nothing that could be installed would help.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Final, NoReturn

import pytest

_COMMANDS: Final = {
    "skopeo": ("skopeo",),
    "podman": ("podman",),
    "buildah": ("buildah",),
    "ctr": ("containerd", "ctr", "runc"),
    "docker": ("dockerd", "containerd", "runc", "docker"),
    "busybox": ("busybox",),
    "nginx": ("nginx",),
    "openssl": ("openssl",),
    "redis": ("redis-server",),
    "docker-registry": ("docker-registry",),
    "postgresql": ("initdb", "postgres"),
    "mariadb": ("mariadbd",),
    "azurite": ("node", "azurite-blob"),
}
_PACKAGES: Final = {
    "busybox": "busybox-static",
    "ctr": "containerd",
    "docker": "docker.io",
    "mariadb": "mariadb-server-core",
    "redis": "redis-server",
}
_INSTALL: Final = {"azurite": "scripts/install-clients, with nodejs and npm"}
_NEED_ROOT: Final = {"podman", "buildah", "ctr", "docker"}
_PREFIX: Final = "client missing: "
_LACKING: Final = "the machine lacks: "


def find_command(name: str) -> str | None:
    """Where a command is.

    Daemons live in sbin, which is not on everyone's PATH, Debian has each PostgreSQL in a folder
    of its own, and `scripts/install-clients` puts Azurite into the user's cache.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    more = ["/usr/sbin", "/sbin", f"{cache}/shoal-tests/azurite/node_modules/.bin"]
    postgres = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    path = [os.environ.get("PATH", os.defpath), *more, *postgres]
    return shutil.which(name, path=":".join(path))


def why_missing(client: str) -> str | None:
    """Why `client` cannot be used here; nothing when it can."""
    absent = [command for command in _COMMANDS[client] if find_command(command) is None]
    if absent:
        how = _INSTALL.get(client) or f"as root: apt-get install {_PACKAGES.get(client, client)}"
        return f"{client}: no {', '.join(absent)} on PATH ({how})"
    if client in _NEED_ROOT and os.geteuid() != 0:
        return f"{client}: needs root for its own private daemon or storage"
    return None


def why_lacking(what: str) -> str | None:
    """What this machine does not have of what a test names; nothing when it has it."""
    checks: dict[str, Callable[[], str | None]]
    checks = {"ipv6": _no_ipv6, "network namespaces": _no_networks}
    return checks[what]()


def _no_ipv6() -> str | None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return None
    return "an IPv6 loopback"


@cache
def _no_networks() -> str | None:
    if os.geteuid() == 0 and all(map(shutil.which, ("ip", "tc", "nsenter", "unshare"))):
        probe = ["unshare", "--net", "sh", "-c", "ip link add shbprobe type bridge"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return None
    return "the right to make network namespaces (root, ip, tc, nsenter)"


def unavailable(reason: str) -> NoReturn:
    """End this test: a client it needs cannot be used here."""
    __tracebackhide__ = True
    if os.environ.get("CI") == "true":
        pytest.fail(f"{_PREFIX}{reason} -- with CI=true every client must be there", pytrace=False)
    pytest.skip(f"{_PREFIX}{reason}")


def lacking(what: str) -> NoReturn:
    """Skip this test: the machine lacks what it needs; the end of the run says so."""
    __tracebackhide__ = True
    pytest.skip(f"{_LACKING}{what}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose clients are not all here, or that this machine cannot run."""
    wanted = [name for mark in item.iter_markers("client") for name in mark.args]
    reasons = [reason for name in wanted if (reason := why_missing(name)) is not None]
    if reasons:
        unavailable("; ".join(dict.fromkeys(reasons)))
    for what in (name for mark in item.iter_markers("machine") for name in mark.args):
        if (reason := why_lacking(what)) is not None:
            lacking(reason)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """After everything else is said: what was missing, and how many tests that cost."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skipped = [
        report.longrepr[2]
        for report in reporter.stats.get("skipped", ())
        if isinstance(report, pytest.TestReport) and isinstance(report.longrepr, tuple)
    ]
    for prefix, which in (
        (_PREFIX, "with real clients"),
        (_LACKING, "that this machine cannot run"),
    ):
        reasons = (text.partition(prefix) for text in skipped)
        costs = Counter(reason for _, found, reason in reasons if found)
        if costs:
            reporter.write_line(f"{costs.total()} tests {which} were skipped:")
        for reason, cost in sorted(costs.items()):
            reporter.write_line(f"  {cost:3} x {reason}")
