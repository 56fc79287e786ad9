# SPDX-License-Identifier: Apache-2.0
"""A folder of a network file system that hangs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.backend import local
from shoal.backend.base import BlobName
from shoal.backend.local import LocalBackend
from shoal.backend.paths import Layout
from shoal.backend.threads import THREADS
from shoal.model.digest import Digest
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable

CONTENT = b"content"
NAME = BlobName("team/app", Digest.of(CONTENT))


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writes hang until the event is set."""
    goes_on = threading.Event()
    write = local._Incoming.write

    def hang(incoming: local._Incoming, data: bytes) -> None:
        goes_on.wait(30)
        write(incoming, data)

    monkeypatch.setattr(local._Incoming, "write", hang)
    yield goes_on
    goes_on.set()


async def test_a_folder_that_hangs_stops_neither_its_callers_nor_the_disks(
    tmp_path: Path, hanging: threading.Event
) -> None:
    backend = LocalBackend(tmp_path, Layout(), timeout=10)
    async with asyncio.timeout(10):
        puts = [
            backend.put(NAME, CONTENT, deadline=Deadline.after(0.3))
            for _ in range(4 * max(THREADS, os.cpu_count() or 1))
        ]
        failures = await asyncio.gather(*puts, return_exceptions=True)
        assert all(isinstance(failure, Unreachable) for failure in failures)
        # The threads of the store, which pushes need.
        assert await in_thread(lambda: "done") == "done"
    hanging.set()
    await backend.put(NAME, CONTENT, deadline=Deadline.after(10))
    assert await backend.stat(NAME, deadline=Deadline.after(10)) == len(CONTENT)
    await backend.close()
