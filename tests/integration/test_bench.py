# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run and report what others read; how fast they are is no matter for a test."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROLES = {
    "push": {"proxy", "origin", "tracker", "build-index"},
    "pull": {"proxy", "origin", "tracker", "build-index", "agent"},
}


async def bench(name: str, folder: Path, *options: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal", "bench", name, "--size", "8MiB", "--dir", str(folder)),
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


@pytest.mark.parametrize("name", ["push", "pull"])
async def test_the_last_line_is_a_json_object_with_the_figures(name: str, tmp_path: Path) -> None:
    lines = await bench(name, tmp_path, "--json")
    assert len(lines) == 1
    figures: dict[str, Any] = json.loads(lines[0])
    for key in ("wall_s", "mb_per_s", "first_byte_ms"):
        assert figures[key] > 0
    assert set(figures["cpu_s_per_gib"]) == ROLES[name]
    assert set(figures["rss_mb"]) == ROLES[name]
    assert all(megabytes > 10 for megabytes in figures["rss_mb"].values())
    extras = figures["extras"]
    if name == "push":
        assert extras["ratio_to_dd"] > 0
    else:
        assert extras["cached"]["wall_s"] > 0
        assert extras["agent_idle_rss_mb"] > 10
        assert "nginx" in extras
    assert os.listdir(tmp_path) == []


async def test_without_json_the_figures_come_before_it(tmp_path: Path) -> None:
    lines = await bench("push", tmp_path, "--runs", "2")
    assert any(line.startswith("mb_per_s ") for line in lines[:-1])
    assert json.loads(lines[-1])["runs"] == 2
