# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import shoal
from shoal.cli import main
from shoal.cluster.roles import ROLES


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_the_version_is_one_line() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"shoal {shoal.__version__}\n")


def test_every_service_is_a_command() -> None:
    assert set(ROLES) == {"proxy", "origin", "tracker", "build-index", "agent"}
    help_text = run("--help").stdout
    assert all(f"  {name} " in help_text for name in ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_an_unknown_key_stops_the_start_with_key_file_and_nearest_key(
    role: str, tmp_path: Path
) -> None:
    path = tmp_path / "service.yaml"
    path.write_text("lisen: 127.0.0.1:0\n")
    result = run(role, "--config", str(path))
    assert result.exit_code == 2
    faults = result.stderr.splitlines()
    assert f'unknown key "lisen" in {path}: did you mean "listen"?' in faults
    assert "Traceback" not in result.output


@pytest.mark.parametrize("role", ROLES)
def test_config_show_prints_values_with_their_origins(role: str, tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(
        "listen: 127.0.0.1:1\norigins: {hosts: ['127.0.0.1:1']}\n"
        + {
            "proxy": "data_dir: /d\nbuild_index: {hosts: ['127.0.0.1:3']}\n",
            "agent": "data_dir: /d\nbuild_index: {hosts: ['127.0.0.1:3']}\n"
            "tracker: {hosts: ['127.0.0.1:4']}\n",
            "tracker": "",
        }.get(role, "data_dir: /d\n")
    )
    result = run("config", "show", "--service", role, "--config", str(path))
    assert result.exit_code == 0, result.output
    rows = [tuple(part.strip() for part in row.split("#")) for row in result.stdout.splitlines()]
    assert ("listen: 127.0.0.1:1", f"file {path}") in rows
    assert ("level: info", "default") in rows
    assert ("shutdown_grace: 7s", "default") in rows


@pytest.mark.parametrize("role", ROLES)
def test_config_show_without_a_file_prints_the_defaults_and_what_must_be_set(role: str) -> None:
    result = run("config", "show", "--service", role)
    assert result.exit_code == 0, result.output
    rows = [tuple(part.strip() for part in row.split("#")) for row in result.stdout.splitlines()]
    assert ("shutdown_grace: 7s", "default") in rows
    assert ("origins:", "must be set") in rows
    assert ("replicas: 3", "default") in rows
    assert all(row[1] in {"default", "must be set"} for row in rows if len(row) > 1)


def test_config_show_refuses_a_service_that_there_is_not() -> None:
    result = run("config", "show", "--service", "herring")
    assert result.exit_code == 2
    assert "'herring' is not one of proxy, origin, tracker, build-index, agent" in result.stderr


def test_config_show_says_which_variable_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TRACKER__LISEN", "127.0.0.1:1")
    result = run("config", "show", "--service", "tracker")
    assert result.exit_code == 2
    assert "SHOAL_TRACKER__LISEN" in result.stderr


@pytest.mark.parametrize("size", ["", "12", "-1MiB", "10 parsecs", "0"])
def test_a_size_needs_its_unit(size: str) -> None:
    result = run("bench", "push", "--size", size)
    assert result.exit_code == 2
    assert "expected" in result.stderr


def test_a_cluster_config_with_an_unknown_key_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("origin: {lisen: x}\n")
    data = tmp_path / "data"
    result = run("up", "--data-dir", str(data), "--config", str(path))
    assert result.exit_code == 2
    assert result.stderr == (
        f'unknown key "lisen" in section origin of {path}: did you mean "listen"?\n'
    )
    assert not data.exists()


def test_a_cluster_without_origins_is_refused_in_one_line(tmp_path: Path) -> None:
    result = run("up", "--data-dir", str(tmp_path / "data"), "--origins", "0")
    assert result.exit_code == 1
    assert result.stderr == "shoal up: a cluster needs at least 1 origin, not 0\n"
