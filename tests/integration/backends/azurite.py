# SPDX-License-Identifier: Apache-2.0
"""Azurite, Microsoft's own server of Azure Blob Storage for tests."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hmac
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.missing_clients import find_command

ACCOUNT: Final = "shoal"
KEY: Final = "c2hvYWwtdGVzdHMtc2hvYWwtdGVzdHMtc2hvYWwtdGVzdHMh"
"""Any base64; the server is told it."""

_READY_WITHIN: Final = 30.0


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a server that keeps its data in `folder`; give its address."""
    command = find_command("azurite-blob")
    assert command is not None, "the test lacks the mark `client('azurite')`"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[str, int] = probe.getsockname()
    argv = [
        command,
        *("--blobHost", address[0], "--blobPort", str(address[1]), "--location", str(folder)),
        *("--silent", "--disableTelemetry", "--skipApiVersionCheck"),
    ]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with (folder / "azurite.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        ends = time.monotonic() + _READY_WITHIN
        while not _listens(address):
            assert process.poll() is None, (folder / "azurite.log").read_text()
            assert time.monotonic() < ends, f"azurite is not ready after {_READY_WITHIN} s"
        yield address
    finally:
        process.kill()
        process.wait()


def _listens(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, 0.2):
            return True
    except OSError:
        time.sleep(0.05)
        return False


def make_container(server: tuple[str, int], name: str) -> None:
    """Make a container (Azure, "Authorize with Shared Key": obstore makes none)."""
    version = "2021-08-06"
    date = email.utils.formatdate(usegmt=True)
    path = f"/{ACCOUNT}/{name}"
    signed = "\n".join(
        [
            "PUT",
            *([""] * 11),
            f"x-ms-date:{date}",
            f"x-ms-version:{version}",
            # The account twice: once as itself, once as the first part of the emulator's path.
            f"/{ACCOUNT}{path}",
            "restype:container",
        ]
    )
    digest = hmac.digest(base64.b64decode(KEY), signed.encode(), "sha256")
    request = urllib.request.Request(
        "http://{}:{}{}?restype=container".format(*server, path),
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": version,
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
            "Content-Length": "0",
        },
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201
