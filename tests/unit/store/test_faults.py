# SPDX-License-Identifier: Apache-2.0
"""Each step of each write fails once: with a full disk, with a broken one, and by a kill.

After a restart the blob is there, whole and right, or nothing of it is; what was acknowledged is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.faults import KINDS, Kind, fail_everywhere

SCENARIOS = {
    "opening": {"mkdir", "fsync"},
    "adopting": {"open", "writev", "fsync", "write", "rename"},
    "adopting_in_a_new_folder": {"mkdir", "rename", "fsync"},
    "adopting_again": {"rename", "write"},
    "marking": {"open", "write", "fsync", "rename"},
    "deleting": {"unlink"},
    "uploading": {"open", "writev", "fsync"},
    "keeping": {"utime", "rename", "fsync"},
    "downloading": {"open", "ftruncate", "pwrite", "rename", "write"},
    "caching_a_manifest": {"open", "write", "rename"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: what is tested is the order of steps, not the disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_failure_at_any_step_loses_nothing_and_leaves_nothing(
    folder: Path, scenario: str, kind: Kind
) -> None:
    steps = fail_everywhere(f"tests.unit.store.fault_scenarios:{scenario}", kind, folder)
    assert SCENARIOS[scenario] <= set(steps)
