# SPDX-License-Identifier: Apache-2.0
"""A short race: Shoal's own set-ups lose no push, though origins are late, fail, and one is killed.

Closes what Kraken's PR #502 left open: the checks of layers and children are tried again, too, all
owners are asked, and operators see what a retry saved.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

PUSHES = 12
KEYS = {
    *("name", "pushes", "failures", "saved_by_retry", "attempts", "tag_p50_ms", "tag_p99_ms"),
}


async def race(folder: Path, *options: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal", "bench", "race", "--dir", str(folder)),
        *("--pushes", str(PUSHES), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 110)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_no_set_up_of_shoal_loses_a_push_and_the_old_way_loses_them(tmp_path: Path) -> None:
    # Every manifest is late, so that twelve pushes are enough to lose some.
    [line] = await race(tmp_path, "--late-share", "1", "--json")
    setups: list[dict[str, Any]] = json.loads(line)["setups"]
    by_name = {setup["name"]: setup for setup in setups}
    assert list(by_name) == [
        *("write_back_no_retry", "write_back_retry", "write_back", "write_through"),
    ]
    for setup in setups:
        assert setup.keys() >= KEYS
        assert setup["pushes"] == PUSHES
        assert setup["faults"]["late_copies"] > 0
        assert setup["lost"] == 0
        assert setup["failures"] == sum(setup["failed_with"].values())
    assert by_name["write_back_no_retry"]["failures"] > 0
    assert by_name["write_back_no_retry"]["saved_by_retry"] == 0
    assert by_name["write_back_retry"]["failures"] == 0
    for name in ("write_back", "write_through"):
        setup = by_name[name]
        assert setup["failures"] == 0, setup["failed_with"]
        assert setup["killed"] == "origin-0"
        assert setup["saved_by_retry"] > 0
        assert sum(setup["attempts"].values()) >= PUSHES
        assert 0 < setup["tag_p50_ms"] <= setup["tag_p99_ms"]
    assert os.listdir(tmp_path) == []


async def test_late_layers_are_waited_for_and_the_table_comes_before_the_json(
    tmp_path: Path,
) -> None:
    lines = await race(
        tmp_path,
        *("--setup", "write_through", "--late", "all", "--late-share", "0.5"),
        *("--fail-rate", "0.05", "--no-kill-origin"),
    )
    [setup] = json.loads(lines[-1])["setups"]
    assert (setup["name"], setup["failures"], setup["killed"]) == ("write_through", 0, None)
    assert setup["faults"]["failed_requests"] > 0
    assert lines[0].startswith("| set-up ")
    assert lines[2].startswith("| write_through ")
