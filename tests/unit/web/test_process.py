# SPDX-License-Identifier: Apache-2.0
"""Services as processes: signals, exit codes, and what they print."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, sys
from aiohttp import web
from shoal.web.logs import LogConfig, configure
from shoal.web.server import Stop, application, run, serve

async def nothing():
    return []

async def slow(request):
    print("began", flush=True)
    await asyncio.sleep(float(sys.argv[3]))
    return web.Response(text="done")

async def main(stop: Stop) -> None:
    app = application("test", readiness=nothing)
    app.router.add_get("/slow", slow)
    if sys.argv[3] == "fail":
        raise RuntimeError("broken\\nin two lines")
    await serve([(app, sys.argv[2])], stop=stop, grace=0.5)
    print("stopped", flush=True)

configure(LogConfig(format="json"), "test")
run(main, loop=sys.argv[1])
"""

LOOPS = ["asyncio", "uvloop"]


class Process:
    """The program above, with the socket on which it tells that it is ready."""

    def __init__(
        self, folder: Path, loop: str, address: str = "127.0.0.1:0", how: str = "0"
    ) -> None:
        notify = str(folder / "notify")
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(notify)
        self._told.settimeout(20)
        program = folder / "program.py"
        program.write_text(textwrap.dedent(PROGRAM))
        self.popen = subprocess.Popen(
            [sys.executable, str(program), loop, address, how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": notify},
        )

    def told(self) -> str:
        return self._told.recv(100).decode()

    def end(self) -> tuple[int, str, list[str]]:
        out, err = self.popen.communicate(timeout=20)
        self._told.close()
        return self.popen.returncode, out, err.splitlines()

    def address(self) -> tuple[str, int]:
        assert self.popen.stderr is not None
        event = json.loads(self.popen.stderr.readline())
        assert event["event"] == "listening"
        host, _, port = event["addresses"].rpartition(":")
        return host, int(port)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_stops(tmp_path: Path, loop: str, number: signal.Signals) -> None:
    process = Process(tmp_path, loop, how="0.2")
    assert process.told() == "READY=1"
    with socket.create_connection(process.address()) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert process.popen.stdout is not None
        assert process.popen.stdout.readline() == "began\n"
        process.popen.send_signal(number)
        assert process.told() == "STOPPING=1"
        answer = b""
        while chunk := client.recv(1000):
            answer += chunk
    assert answer.endswith(b"done")
    assert process.end()[:2] == (0, "stopped\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_what_outlasts_the_grace_does_not_hold_the_stop(tmp_path: Path, loop: str) -> None:
    process = Process(tmp_path, loop, how="100")
    assert process.told() == "READY=1"
    with socket.create_connection(process.address()) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert process.popen.stdout is not None
        assert process.popen.stdout.readline() == "began\n"
        process.popen.terminate()
        status, out, err = process.end()
    assert (status, out) == (0, "stopped\n")
    events = [json.loads(line)["event"] for line in err]
    assert events == ["stopping", "requests cancelled"]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_second_signal_ends_it_at_once(tmp_path: Path, loop: str) -> None:
    process = Process(tmp_path, loop, how="100")
    assert process.told() == "READY=1"
    with socket.create_connection(process.address()) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert process.popen.stdout is not None
        assert process.popen.stdout.readline() == "began\n"
        process.popen.terminate()
        assert process.told() == "STOPPING=1"
        process.popen.terminate()
        assert process.end()[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("loop", LOOPS)
def test_a_port_in_use_is_one_line_on_stderr(tmp_path: Path, loop: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, out, err = Process(tmp_path, loop, address).end()
    assert (status, out) == (1, "")
    (line,) = err
    assert line.startswith(f'cannot listen on {address} (config key "listen"): another process')


def test_an_address_of_another_machine_is_one_line_too(tmp_path: Path) -> None:
    status, _, err = Process(tmp_path, "asyncio", "192.0.2.1:5000").end()
    assert status == 1
    assert err == [
        'cannot listen on 192.0.2.1:5000 (config key "listen"): this machine has no such address'
    ]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_service_that_fails_says_so_and_exits_with_1(tmp_path: Path, loop: str) -> None:
    status, _, err = Process(tmp_path, loop, how="fail").end()
    assert status == 1
    (line,) = err
    event = json.loads(line)
    assert (event["event"], event["service"], event["level"]) == (
        "the service failed",
        "test",
        "error",
    )
    assert "RuntimeError: broken\nin two lines" in event["exception"]
