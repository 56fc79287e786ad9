# SPDX-License-Identifier: Apache-2.0
"""Read a service's config from a YAML file and the environment, and note where values came from.

The environment wins over the file: ``SHOAL_<SERVICE>__<SECTION>__<KEY>``. Lists are written as in
YAML (``[a:1, b:2]``). Environment sources of libraries skip names they do not know; here such a
name is an error like an unknown key in the file, so both sources are read by the same few lines.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shoal.config.units import FROM_TEXT
from shoal.config.yaml_mapping import InvalidYaml, read_value, read_yaml

T = TypeVar("T", bound=BaseModel)

_SHOWN = 80
"""Characters of a bad value that an error repeats."""


class ConfigError(Exception):
    """The config cannot be used; `faults` has one line for each fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A config in force and, by dotted leaf key, where each value came from."""

    value: T
    origins: dict[str, str] = field(default_factory=dict)
    """``"default"``, ``"file /etc/x.yaml"`` or ``"environment SHOAL_AGENT__LISTEN"``."""


def load(model: type[T], service: str, path: Path | None, environ: Mapping[str, str]) -> Loaded[T]:
    """Read and check a config; raises `ConfigError` with every fault found."""
    sources = _Sources(path, _prefix(service))
    data: dict[str, Any] = {}
    if path is not None:
        data = _read_file(path)
        sources.take_file(model, data)
    sources.take_environment(model, environ, data)
    if sources.faults:
        raise ConfigError(sources.faults)
    try:
        value = model.model_validate(data, context={FROM_TEXT: True})
    except ValidationError as error:
        raise ConfigError([sources.describe(one) for one in error.errors()]) from error
    known = sources.origins
    return Loaded(value, {key: known.get(key, "default") for key in leaf_keys(value)})


def leaf_keys(value: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of every value of a config, sections walked; a list is one value."""
    for name in type(value).model_fields:
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            yield from leaf_keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _prefix(service: str) -> str:
    return f"SHOAL_{service.upper().replace('-', '_')}__"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"cannot read {path}: it is not UTF-8 ({error})"]) from error
    except InvalidYaml as error:
        raise ConfigError([f"{path}{error.place}: {error}"]) from error


class _Sources:
    """Where values came from, and what was wrong with them."""

    def __init__(self, path: Path | None, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self.origins: dict[str, str] = {}
        self.faults: list[str] = []

    def take_file(self, model: type[BaseModel], data: Mapping[str, Any], above: str = "") -> None:
        """Note every key of the file, and complain about unknown ones."""
        for key, value in data.items():
            dotted = above + key
            if key not in model.model_fields:
                self.faults.append(
                    _unknown(key, model, above, f"of {self._path}", f"in {self._path}")
                )
                continue
            section = section_of(model, key)
            if section is not None and isinstance(value, dict):
                self.take_file(section, value, dotted + ".")
            else:
                self.origins[dotted] = f"file {self._path}"

    def take_environment(
        self, model: type[BaseModel], environ: Mapping[str, str], data: dict[str, Any]
    ) -> None:
        """Lay the environment's values over those of the file."""
        for name in sorted(environ):
            if not name.startswith(self._prefix):
                continue
            path = name.removeprefix(self._prefix).lower().split("__")
            inner: type[BaseModel] | None = model
            target = data
            for depth, key in enumerate(path):
                if inner is None or key not in inner.model_fields:
                    self.faults.append(self._unknown_variable(name, path[: depth + 1], inner))
                    break
                section = section_of(inner, key)
                if depth == len(path) - 1:
                    self._set(name, path, target, environ[name], section)
                elif section is not None:
                    below = target.get(key)
                    target[key] = target = dict(below) if isinstance(below, dict) else {}
                inner = section

    def _set(
        self,
        name: str,
        path: list[str],
        target: dict[str, Any],
        text: str,
        section: type[BaseModel] | None,
    ) -> None:
        if section is not None:
            keys = ", ".join(f"{name}__{key.upper()}" for key in section.model_fields)
            self.faults.append(f"{name} is a section: set its keys ({keys})")
            return
        target[path[-1]] = read_value(text)
        self.origins[".".join(path)] = f"environment {name}"

    def _unknown_variable(self, name: str, path: list[str], model: type[BaseModel] | None) -> str:
        above = "".join(f"{key}." for key in path[:-1])
        if model is None:
            return f"{name}: {above[:-1]} has no keys of its own"
        where = f"the environment ({name})"
        return _unknown(path[-1], model, above, f"of {where}", f"in {where}")

    def describe(self, error: ErrorDetails) -> str:
        """One line for one of pydantic's errors."""
        keys = [str(part) for part in error["loc"] if isinstance(part, str)]
        place = _dotted(error["loc"])
        origin = next(
            (
                self.origins[key]
                for n in range(len(keys), 0, -1)
                if (key := ".".join(keys[:n])) in self.origins
            ),
            None,
        )
        if error["type"] == "missing":
            variable = self._prefix + "__".join(keys).upper()
            where = (
                "there is no config file" if self._path is None else f"it is not in {self._path}"
            )
            return f'missing key "{place}": {where}, and {variable} is not set'
        where = _whose(origin) if origin else ("" if self._path is None else f" in {self._path}")
        if not place:
            return f"bad config{where}: {_reason(error)}"
        if isinstance(error["input"], dict) and error["type"] in {"value_error", "assertion_error"}:
            return f'bad section "{place}"{where}: {_reason(error)}'
        return f'bad value {_shown(error["input"])} for "{place}"{where}: {_reason(error)}'


def section_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section that a key holds, if it holds one (optional sections, too)."""
    annotation = model.model_fields[key].annotation
    sides = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else ()
    for candidate in (annotation, *sides):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _unknown(key: str, model: type[BaseModel], above: str, of: str, alone: str) -> str:
    place = f"in section {above[:-1]} {of}" if above else alone
    return f'unknown key "{key}" {place}: {_nearest(key, model)}'


def _nearest(key: str, model: type[BaseModel]) -> str:
    here = list(model.model_fields)
    if close := difflib.get_close_matches(key.lower().replace("-", "_"), here, n=1):
        return f'did you mean "{close[0]}"?'
    below = {
        f"{name}.{inner}": inner
        for name in here
        if (section := section_of(model, name)) is not None
        for inner in section.model_fields
    }
    for dotted, inner in below.items():
        if difflib.get_close_matches(key, [inner], n=1, cutoff=0.8):
            return f'did you mean "{dotted}"?'
    return f"known here are {', '.join(sorted(here))}"


def _dotted(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _whose(origin: str) -> str:
    kind, _, name = origin.partition(" ")
    return f" in {name}" if kind == "file" else f" in the environment ({name})"


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _reason(error: ErrorDetails) -> str:
    if error["type"] in {"value_error", "assertion_error"}:
        return str(error.get("ctx", {}).get("error", error["msg"]))
    if error["type"] in {"model_type", "model_attributes_type", "dict_type"}:
        return "expected a section (keys and values)"
    return error["msg"][0].lower() + error["msg"][1:]
