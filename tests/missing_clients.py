# SPDX-License-Identifier: Apache-2.0
"""Tests that need real registry clients: skipped without them, and never silently.

A test names them with `@pytest.mark.client("skopeo", "docker")`. What is missing, and why, stands
in the last lines of the run; with `CI=true` each such test fails instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
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
_INSTALL: Final = {"azurite": "scripts/install-clients, with npm"}
_NEED_ROOT: Final = {"podman", "buildah", "ctr", "docker"}
_PREFIX: Final = "client missing: "


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


def unavailable(reason: str) -> NoReturn:
    """End this test: a client it needs cannot be used here."""
    __tracebackhide__ = True
    if os.environ.get("CI") == "true":
        pytest.fail(f"{_PREFIX}{reason} -- with CI=true every client must be there", pytrace=False)
    pytest.skip(f"{_PREFIX}{reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose clients are not all here."""
    wanted = [name for mark in item.iter_markers("client") for name in mark.args]
    reasons = [reason for name in wanted if (reason := why_missing(name)) is not None]
    if reasons:
        unavailable("; ".join(dict.fromkeys(reasons)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """After everything else is said: which clients were missing, and how many tests that cost."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    costs: dict[str, int] = {}
    for report in reporter.stats.get("skipped", ()):
        if isinstance(report, pytest.TestReport) and isinstance(report.longrepr, tuple):
            _, found, reason = report.longrepr[2].partition(_PREFIX)
            if found:
                costs[reason] = costs.get(reason, 0) + 1
    if costs:
        reporter.write_line(f"{sum(costs.values())} tests with real clients were skipped:")
    for reason, cost in sorted(costs.items()):
        reporter.write_line(f"  {cost:3} x {reason}")
