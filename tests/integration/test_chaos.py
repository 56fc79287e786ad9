# SPDX-License-Identifier: Apache-2.0
"""A short run of ``shoal chaos``: real services are broken one after the other; nothing is lost."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

SEED = 47
"""Its first faults: an origin and a proxy are wiped, another origin is killed."""


@pytest.mark.timeout(300)
async def test_nothing_acknowledged_is_lost_while_services_are_broken() -> None:
    argv = ["-m", "shoal", "chaos", "--minutes", "0.4", "--seed", str(SEED), "--json"]
    chaos = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await chaos.communicate()
    assert chaos.returncode == 0, f"{out.decode()}\n{err.decode()[-4000:]}"
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["acknowledged"] > 10
    assert outcome["pulls"] > 10
    assert outcome["faults"]["wipe"] >= 1
    assert outcome["storage_faults"] > 0
    assert (outcome["lost"], outcome["wrong_bytes"], outcome["unrepaired"]) == (0, 0, 0)
    assert outcome["longest_repair_s"] > 0
    assert outcome["operations"] == outcome["pushes"] + outcome["pulls"]
