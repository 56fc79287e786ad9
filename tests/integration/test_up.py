# SPDX-License-Identifier: Apache-2.0
"""`shoal up` as users and other programs run it: as a process."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

PATIENCE = 30.0


class Up:
    """A `shoal up` under way."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path) -> None:
        self.process = process
        self.ready_file = ready_file

    async def ready(self) -> dict[str, Any]:
        await self.out("ready in")
        document: dict[str, Any] = json.loads(self.ready_file.read_text())
        return document

    async def out(self, text: str) -> str:
        return await line_with(self.process.stdout, text)

    async def err(self, text: str) -> str:
        return await line_with(self.process.stderr, text)

    async def ended(self) -> tuple[int, list[str]]:
        """Exit status and what is left on stderr."""
        _, err = await asyncio.wait_for(self.process.communicate(), PATIENCE)
        assert self.process.returncode is not None
        return self.process.returncode, err.decode().splitlines()


async def line_with(stream: asyncio.StreamReader | None, text: str) -> str:
    assert stream is not None
    async with asyncio.timeout(PATIENCE):
        while line := (await stream.readline()).decode():
            if text in line:
                return line
    raise AssertionError(f"no line with {text!r}")


@asynccontextmanager
async def up(tmp_path: Path, *options: str) -> AsyncIterator[Up]:
    ready_file = tmp_path / "ready.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal", "up", "--data-dir", str(tmp_path / "data")),
        *("--ready-file", str(ready_file), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Up(process, ready_file)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def pidfds(document: dict[str, Any]) -> list[int]:
    return [os.pidfd_open(pid) for pid in document["pids"].values()]


def all_ended(fds: list[int], within: float) -> bool:
    """Whether every process has ended; its descriptor is readable then."""
    try:
        return all(select.select([fd], [], [], within)[0] for fd in fds)
    finally:
        for fd in fds:
            os.close(fd)


def get(url: str) -> bytes:
    with urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


async def test_a_cluster_becomes_ready_and_stops_within_ten_seconds_of_sigterm(
    tmp_path: Path,
) -> None:
    async with up(tmp_path, "--agents", "2") as cluster:
        document = await cluster.ready()
        assert {key: len(value) for key, value in document.items()} == {
            "proxies": 1,
            "origins": 3,
            "trackers": 1,
            "build_indexes": 1,
            "agents": 2,
            "pids": 8,
        }
        assert set(document["pids"]) == {
            *("proxy-0", "origin-0", "origin-1", "origin-2"),
            *("tracker-0", "build-index-0", "agent-0", "agent-1"),
        }
        urls = [
            *document["proxies"],
            *document["origins"],
            *document["trackers"],
            *document["build_indexes"],
            *(agent["admin"] for agent in document["agents"]),
        ]
        for url in urls:
            assert await asyncio.to_thread(get, f"{url}/health") == b"OK"
            readiness = json.loads(await asyncio.to_thread(get, f"{url}/readiness"))
            assert readiness["ready"] is True
            assert b"# TYPE" in await asyncio.to_thread(get, f"{url}/metrics")
        for agent in document["agents"]:
            await asyncio.to_thread(get, f"{agent['registry']}/v2/")
        for name in document["pids"]:
            assert (tmp_path / "data" / "logs" / f"{name}.log").exists()
        fds = pidfds(document)
        loop = asyncio.get_running_loop()
        asked = loop.time()
        cluster.process.send_signal(signal.SIGTERM)
        status, complaints = await cluster.ended()
        assert loop.time() - asked < 10
        assert (status, complaints) == (0, [])
        assert all_ended(fds, 0)
        assert not cluster.ready_file.exists()


async def test_ctrl_c_while_the_services_start_leaves_nothing(tmp_path: Path) -> None:
    async with up(tmp_path, "--agents", "1") as cluster:
        # The configs are written just before the processes start.
        folder = tmp_path / "data" / "config"
        async with asyncio.timeout(PATIENCE):
            while not folder.exists():  # noqa: ASYNC110 -- another process writes it
                await asyncio.sleep(0.01)
        cluster.process.send_signal(signal.SIGINT)
        assert await cluster.ended() == (0, [])
        assert not cluster.ready_file.exists()


async def test_a_service_that_dies_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    async with up(tmp_path, "--agents", "1") as cluster:
        document = await cluster.ready()
        victim = document["pids"]["origin-1"]
        os.kill(victim, signal.SIGKILL)
        line = await cluster.err("origin-1")
        log = tmp_path / "data" / "logs" / "origin-1.log"
        assert line == f"origin-1 (pid {victim}) was ended by SIGKILL; log: {log}\n"
        assert await asyncio.to_thread(get, f"{document['origins'][0]}/health") == b"OK"
        assert document == json.loads(cluster.ready_file.read_text())
        cluster.process.send_signal(signal.SIGINT)
        status, _ = await cluster.ended()
        assert status == 0


async def test_requests_that_never_end_do_not_hold_up_the_stop(tmp_path: Path) -> None:
    digest = f"sha256:{'0' * 64}"
    async with up(tmp_path, "--agents", "1") as cluster, AsyncExitStack() as connections:
        document = await cluster.ready()
        fds = pidfds(document)
        for url, request in (
            *((origin, f"PUT /namespace/x/blobs/{digest}") for origin in document["origins"]),
            (document["proxies"][0], "POST /v2/x/blobs/uploads/"),
        ):
            address = urlsplit(url)
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            connections.callback(writer.close)
            head = f"{request} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1000\r\n\r\n"
            writer.write(f"{head}never more than this".encode())
            await writer.drain()
        loop = asyncio.get_running_loop()
        asked = loop.time()
        cluster.process.send_signal(signal.SIGTERM)
        status, complaints = await cluster.ended()
        assert loop.time() - asked < 10
        assert (status, complaints) == (0, [])
        assert all_ended(fds, 0)


async def test_nothing_survives_a_killed_supervisor(tmp_path: Path) -> None:
    async with up(tmp_path, "--agents", "1") as cluster:
        fds = pidfds(await cluster.ready())
        cluster.process.kill()
        assert await asyncio.to_thread(all_ended, fds, 5)


async def test_a_service_that_cannot_start_stops_all_and_is_named(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text("tracker: {log: {level: loud}}\n")
    async with up(tmp_path, "--config", str(config)) as cluster:
        status, complaints = await cluster.ended()
    assert status == 1
    assert "shoal up: tracker-0 (pid " in complaints[-1]
    assert "exited with status 2" in complaints[-1]
    assert any("'loud'" in line and "log.level" in line for line in complaints)


async def test_config_for_one_role_reaches_its_services(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text("agent: {zone: a}\nagent-1: {zone: b}\n")
    async with up(tmp_path, "--agents", "2", "--config", str(config)) as cluster:
        await cluster.ready()
        shown = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shoal", "config", "show", "--service", "agent"),
            *("--config", str(tmp_path / "data" / "config" / "agent-1.yaml")),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await shown.communicate()
        assert any(line.startswith("zone: b ") for line in out.decode().splitlines())
        cluster.process.send_signal(signal.SIGTERM)
        assert (await cluster.ended())[0] == 0


async def test_a_folder_has_one_cluster_at_a_time(tmp_path: Path) -> None:
    async with up(tmp_path, "--agents", "1") as cluster:
        await cluster.ready()
        async with up(tmp_path) as second:
            status, complaints = await second.ended()
        assert status == 1
        assert len(complaints) == 1
        assert "is in use by another cluster" in complaints[0]
        cluster.process.send_signal(signal.SIGTERM)
        assert (await cluster.ended())[0] == 0


async def test_a_taken_port_of_the_block_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, suppress(OSError):
        port = taken.getsockname()[1]
        async with up(tmp_path, "--port-base", str(port - 3)) as cluster:
            status, complaints = await cluster.ended()
    assert status == 1
    assert len(complaints) == 1
    assert complaints[0].startswith("shoal up: 127.0.0.1:")
    assert "is in use" in complaints[0]
    assert not (tmp_path / "data").exists()
