# SPDX-License-Identifier: Apache-2.0
"""YAML in which a key stands once: a mapping at the top, and text keys everywhere."""

from __future__ import annotations

from typing import Any

import yaml


class InvalidYaml(ValueError):
    """The text is not such a mapping; `place` is ``":line:column"`` or empty."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that comes twice, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise InvalidYaml(f"the key {key!r} must be text", _place(key_node.start_mark))
            if key in seen:
                raise InvalidYaml(
                    f'the key "{key}" stands twice, first in line {seen[key]}',
                    _place(key_node.start_mark),
                )
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str) -> dict[str, Any]:
    """The mapping that a config file holds; empty for an empty file. Raises `InvalidYaml`."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidYaml(f"not YAML: {error.problem or error}", _place(mark)) from error
    except yaml.YAMLError as error:
        raise InvalidYaml(f"not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise InvalidYaml("not a config: nested too deeply") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidYaml(f"expected keys and values at the top, got a {type(data).__name__}")
    return data


def read_value(text: str) -> Any:
    """A value from the environment: ``[a, b]`` is a list as in YAML, everything else is text."""
    if not text.lstrip().startswith("["):
        return text
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 derived from SafeLoader
    except (yaml.YAMLError, InvalidYaml):
        return text


def _place(mark: Any) -> str:
    return "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"
