# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.layout import Shape
from shoal.cluster.overrides import read_overrides
from shoal.config.load import ConfigError


def faults(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_overrides(path, Shape())
    return [fault.replace(str(path), "FILE") for fault in caught.value.faults]


def test_sections_by_role_and_by_service_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("origin: {log: {level: debug}}\norigin-2: {shutdown_grace: 2s}\n")
    assert read_overrides(path, Shape()) == {
        "origin": {"log": {"level": "debug"}},
        "origin-2": {"shutdown_grace": "2s"},
    }


def test_an_unknown_section_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert faults(tmp_path, "orign: {}\n") == [
        'unknown section "orign" in FILE: did you mean "origin"?'
    ]


def test_a_service_that_the_cluster_does_not_have_is_an_unknown_section(tmp_path: Path) -> None:
    assert faults(tmp_path, "origin-3: {}\n")[0].startswith('unknown section "origin-3" in FILE')


def test_every_unknown_key_is_named_with_its_section_and_the_nearest(tmp_path: Path) -> None:
    assert faults(tmp_path, "origin: {lisen: x, log: {levle: debug}}\n") == [
        'unknown key "lisen" in section origin of FILE: did you mean "listen"?',
        'unknown key "levle" in section origin.log of FILE: did you mean "level"?',
    ]


@pytest.mark.parametrize("text", ["- a\n", "origin: 3\n", "a: [\n", "tracker: {}\ntracker: {}\n"])
def test_what_is_not_sections_of_keys_and_values_is_refused(tmp_path: Path, text: str) -> None:
    assert all("FILE" in fault for fault in faults(tmp_path, text))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml"):
        read_overrides(tmp_path / "nowhere.yaml", Shape())
