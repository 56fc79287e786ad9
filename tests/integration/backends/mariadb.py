# SPDX-License-Identifier: Apache-2.0
"""A MariaDB of our own in a temporary folder, run by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp.test_utils import unused_port

from tests.missing_clients import find_command, unavailable, why_missing
from tests.places import open_folder


@contextmanager
def running_mariadb() -> Iterator[int]:
    """The port of a server, which may need a moment before it answers. Skips without one.

    It has no accounts, and so needs none of the tables that a package's scripts would make.
    """
    if (reason := why_missing("mariadb")) is not None:
        unavailable(reason)
    command = find_command("mariadbd")
    assert command is not None
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(
        prefix="shoal-mariadb-", dir=open_folder(), ignore_cleanup_errors=True
    ) as path:
        folder, port = Path(path), unused_port()
        (folder / "data").mkdir()
        if user is not None:
            owner = pwd.getpwnam(user)
            for each in (folder, folder / "data"):
                os.chown(each, owner.pw_uid, owner.pw_gid)
        process = subprocess.Popen(
            [
                *(command, "--no-defaults", f"--datadir={folder}/data", f"--port={port}"),
                *("--bind-address=127.0.0.1", f"--socket={folder}/socket"),
                f"--tmpdir={folder}",
                *("--skip-name-resolve", "--skip-grant-tables", "--skip-log-bin"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user,
            cwd=folder,
        )
        try:
            yield port
        finally:
            process.terminate()
            process.wait(30)
