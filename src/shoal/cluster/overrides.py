# SPDX-License-Identifier: Apache-2.0
"""The file given to ``shoal up --config``: one section per role or per service."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shoal.cluster.layout import Overrides, Shape
from shoal.cluster.roles import ROLES
from shoal.config.load import ConfigError, section_of
from shoal.config.yaml_mapping import InvalidYaml, read_yaml


def read_overrides(path: Path, shape: Shape) -> Overrides:
    """Read the file; raises `ConfigError` naming each section and key that nobody knows.

    Values are checked by the services when they start.
    """
    try:
        sections = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot read {path}: {error}"]) from error
    except InvalidYaml as error:
        raise ConfigError([f"{path}{error.place}: {error}"]) from error
    if faults := list(_faults(sections, shape, path)):
        raise ConfigError(faults)
    return sections


def _faults(sections: Mapping[str, Any], shape: Shape, path: Path) -> Iterator[str]:
    services = shape.names()
    for name, section in sections.items():
        if name not in ROLES and name not in services:
            nearest = _nearest(name, [*ROLES, *services])
            yield f'unknown section "{name}" in {path}: {nearest}'
        elif not isinstance(section, Mapping):
            yield f'bad section "{name}" in {path}: expected keys and values'
        else:
            role = name if name in ROLES else name.rpartition("-")[0]
            yield from _unknown_keys(section, ROLES[role].config_model(), name, path)


def _unknown_keys(
    section: Mapping[str, Any], model: type[BaseModel], place: str, path: Path
) -> Iterator[str]:
    for key, value in section.items():
        if key not in model.model_fields:
            nearest = _nearest(key, model.model_fields)
            yield f'unknown key "{key}" in section {place} of {path}: {nearest}'
            continue
        below = section_of(model, key)
        if below is not None and isinstance(value, Mapping):
            yield from _unknown_keys(value, below, f"{place}.{key}", path)


def _nearest(name: str, known: Collection[str]) -> str:
    if close := difflib.get_close_matches(name.lower(), known, n=1):
        return f'did you mean "{close[0]}"?'
    return f"known here are {', '.join(known)}"
