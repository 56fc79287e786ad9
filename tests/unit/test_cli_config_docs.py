# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md says what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from shoal.cli.config_text import default_lines
from shoal.cluster.roles import ROLES
from shoal.config.load import load, section_of

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
EXAMPLES = {
    str(match[1]): str(match[2])
    for match in re.finditer(r"```yaml\n# ([a-z-]+)[^\n]*\n(.*?)```", PAGE, re.DOTALL)
}


def keys(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name in model.model_fields:
        section = section_of(model, name)
        if section is None:
            yield above + name
        else:
            yield from keys(section, f"{above}{name}.")


@pytest.mark.parametrize("role", ROLES)
def test_every_key_of_a_service_is_described(role: str) -> None:
    missing = [key for key in keys(ROLES[role].config_model()) if f"| `{key}` |" not in PAGE]
    assert missing == []


def test_every_described_key_exists() -> None:
    known = {key for role in ROLES.values() for key in keys(role.config_model())}
    described = set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE, re.MULTILINE))
    assert described - known == set()


@pytest.mark.parametrize("role", ROLES)
def test_the_example_of_each_service_is_a_config_that_it_takes(role: str, tmp_path: Path) -> None:
    path = tmp_path / f"{role}.yaml"
    path.write_text(EXAMPLES[role])
    loaded = load(ROLES[role].config_model(), role, path, {})
    assert loaded.origins["origins.hosts"] == f"file {path}"


def test_the_example_of_a_cluster_names_sections_that_exist() -> None:
    text = PAGE.partition("## shoal up --config")[2].partition("```yaml\n")[2].partition("```")[0]
    assert set(yaml.safe_load(text)) == {"agent", "agent-1"}


@pytest.mark.parametrize("role", ROLES)
def test_the_described_defaults_are_those_of_the_code(role: str) -> None:
    _, _, after = PAGE.partition(f"\n## {role}\n")
    section = after.partition("\n## ")[0]
    described = dict(re.findall(r"^\| `([a-z_]+)` \| `([^`]+)` \|", section, re.MULTILINE))
    assert described
    shown = yaml.safe_load("\n".join(default_lines(ROLES[role].config_model())))
    assert described == {key: str(shown[key]) for key in described}
