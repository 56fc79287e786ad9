# SPDX-License-Identifier: Apache-2.0
"""docs/operations/backends.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter

from shoal.backend.config import BackendsConfig, PlaceConfig
from shoal.config.units import FROM_TEXT

PAGE = (Path(__file__).parents[3] / "docs" / "operations" / "backends.md").read_text()
EXAMPLES = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "match:" in text]


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_is_a_config_that_is_taken(text: str) -> None:
    data: Any = yaml.safe_load(text)
    entries = data["backends"] if isinstance(data, dict) else data
    taken = TypeAdapter[Any](BackendsConfig).validate_python(entries, context={FROM_TEXT: True})
    assert [entry.kind for entry in taken] == [entry["kind"] for entry in entries]


def test_there_is_an_example_of_every_kind() -> None:
    described = set(re.findall(r"kind: ([a-z0-9]+)", PAGE))
    kinds = {get_args(model.model_fields["kind"].annotation)[0] for model in get_args(PlaceConfig)}
    assert described >= kinds | {"shadow"}


def test_every_key_of_a_kind_is_described() -> None:
    keys = {key for model in get_args(PlaceConfig) for key in model.model_fields}
    assert {key for key in keys if f"`{key}`" not in PAGE and f"{key}:" not in PAGE} == set()
