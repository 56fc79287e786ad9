# SPDX-License-Identifier: Apache-2.0
"""`shoal bench tracker` on a small swarm."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path


async def test_joins_are_measured_in_a_swarm_of_zones(tmp_path: Path) -> None:
    options = ["--peers", "60", "--zones", "3", "--seconds", "300ms", "--dir", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal", "bench", "tracker", "--json", *options),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120.0):
        output, _ = await process.communicate()
    assert process.returncode == 0
    figures = json.loads(output)
    assert (figures["peers"], figures["zones"], figures["store"]) == (60, 3, "memory")
    assert figures["joins_per_s"] > 0
    assert figures["joins_per_cpu_s"] > 0
    assert figures["rss_mb"] >= figures["empty_rss_mb"] * 0.9
