# SPDX-License-Identifier: Apache-2.0
"""The swarm benchmark runs and reports what others read, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.bench import swarm_idle

SIZE = 8 << 20
RATE = 8_000_000


def left_of_networks(pid: int) -> list[str]:
    """Links and namespaces that a benchmark made and did not take away."""
    links, namespaces = Path("/sys/class/net"), Path("/run/netns")
    names = [path.name for path in links.iterdir()]
    names += [path.name for path in namespaces.iterdir()] if namespaces.exists() else []
    return [name for name in names if name.startswith(f"shb{pid}")]


async def bench(folder: Path, *options: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal", "bench", "swarm", "--json", "--dir", str(folder)),
        *("--size", "8MiB", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 90)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, err.decode()
    assert os.listdir(folder) == []
    assert left_of_networks(process.pid) == []
    figures: dict[str, Any] = json.loads(out)
    return figures


async def test_all_agents_have_the_blob_and_its_bytes_are_accounted_for(tmp_path: Path) -> None:
    figures = await bench(tmp_path, "--agents", "2", "--runs", "2")
    assert len(figures["finish_s"]) == 2
    assert figures["finish_s"] == sorted(figures["finish_s"])
    assert len(figures["last_s_of_runs"]) == figures["runs"] == 2
    assert 0 < figures["first_byte_ms"] <= 1000 * figures["finish_s"][-1]
    assert figures["ideal_s"] is None
    assert figures["origin_copies"] >= 1
    assert figures["origin_copies"] + figures["peer_copies"] >= 2
    assert 0 <= figures["other_cores"] <= (os.cpu_count() or 1)
    assert set(figures["cpu_s_per_gib_by_role"]) == {
        *("proxy", "origin", "tracker", "build-index", "agent")
    }


async def test_no_agent_is_faster_than_shoals_limit(tmp_path: Path) -> None:
    figures = await bench(tmp_path, "--agents", "2", "--rate", "8MB/s")
    assert figures["ideal_s"] == pytest.approx(SIZE / RATE, abs=0.001)
    assert figures["finish_s"][0] > 0.8 * SIZE / RATE, "a burst may go before"
    assert figures["limited_by"] == "shoal"


# Namespaces are the kernel's to give, and the command itself refuses `--netns` without them.
@pytest.mark.machine("network namespaces")
async def test_in_namespaces_the_kernel_limits_and_nothing_of_them_is_left(tmp_path: Path) -> None:
    figures = await bench(tmp_path, "--agents", "2", "--rate", "8MB/s", "--netns")
    assert figures["finish_s"][0] > 0.8 * SIZE / RATE
    assert figures["limited_by"] == "tbf between network namespaces"


async def test_latencies_of_cold_blobs_and_of_an_image_of_tiny_layers(tmp_path: Path) -> None:
    figures = await bench(tmp_path, "--latency")
    assert figures["first_byte_small_ms"] > 0
    assert figures["first_byte_large_ms"] > 0
    assert figures["tiny_layers"] == 60
    assert figures["tiny_layers_s"] > 0


def test_what_an_idle_agent_costs_is_of_the_agent_that_has_the_blobs(tmp_path: Path) -> None:
    idle = swarm_idle.run(3, 0.5, tmp_path, lambda _: None)
    figures = swarm_idle.document(idle)
    assert figures["rss_mb"] >= figures["empty_rss_mb"] > 0
    assert figures["core_percent"] < 100
    assert list(tmp_path.iterdir()) == []
