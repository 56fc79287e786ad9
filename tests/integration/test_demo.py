# SPDX-License-Identifier: Apache-2.0
"""`shoal demo` as users run it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

PATIENCE = 60.0


@asynccontextmanager
async def demo(tmp_path: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal", "demo", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "120"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def test_the_demo_pulls_through_every_agent_and_leaves_nothing(tmp_path: Path) -> None:
    async with demo(tmp_path, "--size", "12MiB", "--layers", "2", "--agents", "2") as process:
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    lines = out.decode().splitlines()
    assert process.returncode == 0, out.decode()
    assert lines[-1] == "demo: ok"
    assert any(line.startswith("│ push ") for line in lines)
    for name in ("agent-0", "agent-1"):
        assert f"{name}: 100 %" in lines
        row = next(line for line in lines if line.startswith(f"│ pull {name}"))
        assert row.count("%") == 2
    assert any(line.startswith("│ pull, all") for line in lines)
    assert os.listdir(tmp_path) == []


async def test_ctrl_c_ends_the_demo_and_leaves_nothing(tmp_path: Path) -> None:
    async with demo(tmp_path, "--size", "64MiB", "--agents", "2") as process:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while b"pushing" not in await process.stdout.readline():
                pass
        services = descendants(process.pid)
        assert len(services) == 8
        process.send_signal(signal.SIGINT)
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 130
    assert out.decode().splitlines()[-1] == "demo: stopped: by SIGINT"
    assert not any(service.is_running() for service in services)
    assert os.listdir(tmp_path) == []


async def test_a_failure_is_the_last_line(tmp_path: Path) -> None:
    async with demo(tmp_path, "--size", "64MiB", "--agents", "2") as process:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while b"pushing" not in await process.stdout.readline():
                pass
        for service in descendants(process.pid):
            service.kill()
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert out.decode().splitlines()[-1].startswith("demo: failed: ")
    assert os.listdir(tmp_path) == []


async def test_a_demo_that_the_disk_cannot_hold_is_refused_before_it_starts(
    tmp_path: Path,
) -> None:
    async with demo(tmp_path, "--size", "900TiB") as process:
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert "GB are needed" in out.decode().splitlines()[-1]
    assert os.listdir(tmp_path) == []
