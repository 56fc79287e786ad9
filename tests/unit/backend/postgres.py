# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL of our own in a temporary folder, run by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp.test_utils import unused_port

from tests.missing_clients import find_command, unavailable, why_missing
from tests.places import open_folder

PASSWORD = "pa$$ wörd/@"
PASSWORD_QUOTED = "pa%24%24%20w%C3%B6rd%2F%40"
USER = "shoal"


class Postgres:
    """A cluster that can be stopped and started."""

    def __init__(self, folder: Path, port: int) -> None:
        initdb = find_command("initdb")
        assert initdb is not None
        self.port = port
        self._bins = Path(initdb).resolve().parent
        self._folder = folder
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}:{PASSWORD_QUOTED}@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                str(self._bins / "initdb"),
                *("-D", str(self._folder / "data"), "-U", USER, "--pwfile", str(secret)),
                *("-A", "scram-sha-256", "--locale=C.UTF-8", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self._folder,
        )

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                str(self._bins / "postgres"),
                *("-D", str(self._folder / "data"), "-p", str(self.port), "-h", "127.0.0.1"),
                *("-k", str(self._folder), "-c", "fsync=off"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
            cwd=self._folder,
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A running cluster; it may need a moment before it answers. Skips where there is none."""
    if (reason := why_missing("postgresql")) is not None:
        unavailable(reason)
    with tempfile.TemporaryDirectory(
        prefix="shoal-postgres-", dir=open_folder(), ignore_cleanup_errors=True
    ) as folder:
        postgres = Postgres(Path(folder), unused_port())
        postgres.create()
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()
