# SPDX-License-Identifier: Apache-2.0
"""A test whose client or machine is missing is never skipped in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
from tests import missing_clients

@pytest.mark.client("skopeo")
def test_with_a_client(): ...

@pytest.mark.machine("ipv6")
def test_with_a_machine(): ...

def test_that_asks_itself():
    missing_clients.lacking("a small disk")
"""

CONFTEST = """
from tests import missing_clients

pytest_plugins = ("tests.missing_clients",)
missing_clients.why_missing = lambda client: f"{client}: not installed"
missing_clients.why_lacking = lambda what: f"an {what} loopback"
"""


@pytest.mark.parametrize("ci", ["true", ""])
def test_what_is_missing_is_named_at_the_end_and_fails_in_ci_when_it_can_be_installed(
    tmp_path: Path, ci: str
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    client\n    machine\n")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "CI": ci, "PYTHONPATH": f"{root}:{root}/src"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "2 tests that this machine cannot run were skipped:" in run.stdout, run.stdout
    assert "1 x an ipv6 loopback" in run.stdout
    assert "1 x a small disk" in run.stdout
    if ci:
        assert run.returncode == 1
        assert "skopeo: not installed -- with CI=true every client must be there" in run.stdout
    else:
        assert run.returncode == 0
        assert "1 x skopeo: not installed" in run.stdout
