# SPDX-License-Identifier: Apache-2.0
"""A config as lines of YAML, each value with its origin as a comment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from shoal.config.load import Loaded
from shoal.config.model import Config

_INDENT = "  "


def lines(loaded: Loaded[Config]) -> Iterator[str]:
    """Render a config file whose comments are the origins. Secrets are masked."""
    rows: list[tuple[str, str]] = []
    # As JSON, quantities have their units and pydantic's secrets are stars.
    _walk(loaded.value.model_dump(mode="json"), loaded.origins, (), rows)
    width = max((len(text) for text, origin in rows if origin), default=0)
    for text, origin in rows:
        yield f"{text:<{width}}  # {origin}" if origin else text


def _walk(
    values: dict[str, Any],
    origins: dict[str, str],
    above: tuple[str, ...],
    rows: list[tuple[str, str]],
) -> None:
    for key, value in values.items():
        path = (*above, key)
        origin = origins.get(".".join(path))
        indent = _INDENT * len(above)
        if origin is None and isinstance(value, dict):
            rows.append((f"{indent}{key}:", ""))
            _walk(value, origins, path, rows)
        else:
            rows.append((f"{indent}{key}: {_flow(value)}", origin or "default"))


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
