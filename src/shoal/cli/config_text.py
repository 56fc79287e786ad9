# SPDX-License-Identifier: Apache-2.0
"""A config as lines of YAML, each value with its origin as a comment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from shoal.config.load import Loaded, section_of
from shoal.config.model import Config

UNSET = "must be set"
"""The origin of a value that has no default."""

_INDENT = "  "
_Row = tuple[str, str]


def lines(loaded: Loaded[Config]) -> Iterator[str]:
    """Render a config file whose comments are the origins. Secrets are masked."""
    # As JSON, quantities have their units and pydantic's secrets are stars.
    return _aligned(_rows(loaded.value.model_dump(mode="json"), loaded.origins, ()))


def default_lines(model: type[Config]) -> Iterator[str]:
    """Render the defaults, and say which keys have none."""
    return _aligned(_default_rows(model, _defaults(model).model_dump(mode="json"), 0))


def _defaults(model: type[BaseModel]) -> BaseModel:
    """Make an instance that lacks the values without a default."""
    sections = {
        name: _defaults(section)
        for name, field in model.model_fields.items()
        if field.is_required() and (section := section_of(model, name)) is not None
    }
    return model.model_construct(None, **sections)


def _default_rows(model: type[BaseModel], values: dict[str, Any], depth: int) -> Iterator[_Row]:
    for name, field in model.model_fields.items():
        section = section_of(model, name)
        indent = _INDENT * depth
        if section is not None and isinstance(values.get(name), dict):
            yield f"{indent}{name}:", UNSET if field.is_required() else ""
            yield from _default_rows(section, values[name], depth + 1)
        elif name in values:
            yield f"{indent}{name}: {_flow(values[name])}", "default"
        else:
            yield f"{indent}{name}:", UNSET


def _rows(
    values: dict[str, Any], origins: dict[str, str], above: tuple[str, ...]
) -> Iterator[_Row]:
    for key, value in values.items():
        path = (*above, key)
        origin = origins.get(".".join(path))
        indent = _INDENT * len(above)
        if origin is None and isinstance(value, dict):
            yield f"{indent}{key}:", ""
            yield from _rows(value, origins, path)
        else:
            yield f"{indent}{key}: {_flow(value)}", origin or "default"


def _aligned(rows: Iterator[_Row]) -> Iterator[str]:
    kept = list(rows)
    width = max((len(text) for text, origin in kept if origin), default=0)
    for text, origin in kept:
        yield f"{text:<{width}}  # {origin}" if origin else text


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
