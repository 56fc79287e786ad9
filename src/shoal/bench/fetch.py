# SPDX-License-Identifier: Apache-2.0
"""A client in a process of its own that waits for the word to go.

So that many begin at once, each with an interpreter to itself, and where the network namespace of
each may be another. ``python -m shoal.bench.fetch`` reads one `Task` as a line of JSON from
standard input, says ``ready``, waits for another line, does it, and writes one `Fetched` as JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import msgspec

from shoal.bench.client import TransferFailed, download

START_WITHIN = 30.0
"""Seconds for the process to start."""

READY = b"ready\n"


class Task(msgspec.Struct, frozen=True):
    """What to download, so many at a time and in this order."""

    urls: Sequence[str]
    at_once: int = 1


class Fetched(msgspec.Struct, frozen=True):
    """What that took."""

    size: int
    wall_s: float
    first_byte_s: float
    """Of the first URL."""

    cpu_s: float
    """Of this client."""


class Fetcher:
    """A process that is ready to go."""

    def __init__(self, process: asyncio.subprocess.Process, task: Task) -> None:
        self._process = process
        self._task = task

    async def go(self, within: float) -> Fetched:
        """Begin, and return what it took; raises `TransferFailed`, also when the time is over."""
        try:
            async with asyncio.timeout(within):
                answer, complaint = await self._process.communicate(b"go\n")
        except TimeoutError as error:
            raise TransferFailed(
                f"GET {self._task.urls[0]}: not done after {within:g} s"
            ) from error
        if self._process.returncode != 0:
            raise TransferFailed(complaint.decode(errors="replace").strip())
        return msgspec.json.decode(answer, type=Fetched)


@asynccontextmanager
async def fetcher(task: Task, launcher: Sequence[str] = ()) -> AsyncIterator[Fetcher]:
    """Start a process; `launcher` is a command line that goes before its own.

    Raises `TransferFailed` when it does not get ready.
    """
    process = await asyncio.create_subprocess_exec(
        *launcher,
        *(sys.executable, "-m", "shoal.bench.fetch"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        if process.stdin is None or process.stdout is None:
            raise TransferFailed("a client has no pipes")
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        async with asyncio.timeout(START_WITHIN):
            said = await process.stdout.readline()
        if said != READY:
            _, complaint = await process.communicate()
            raise TransferFailed(f"a client did not start: {complaint.decode(errors='replace')}")
        yield Fetcher(process, task)
    except TimeoutError as error:
        raise TransferFailed(f"a client did not start within {START_WITHIN:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def fetch(task: Task) -> Fetched:
    """Download all; raises `TransferFailed`. Blocks."""
    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(task.at_once, thread_name_prefix="fetch") as pool:
        transfers = list(pool.map(download, task.urls))
    wall_s = time.perf_counter() - began
    cpu_s = time.process_time() - cpu
    return Fetched(sum(it.size for it in transfers), wall_s, transfers[0].first_byte_s, cpu_s)


def main() -> None:
    """Read a task, wait, do it, and write what it took."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    sys.stdin.buffer.readline()
    try:
        fetched = fetch(task)
    except TransferFailed as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(msgspec.json.encode(fetched))


if __name__ == "__main__":
    main()
