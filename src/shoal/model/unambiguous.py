# SPDX-License-Identifier: Apache-2.0
"""JSON that every reader reads alike.

Of a key that comes twice some parsers take the first value and some the last; Go's takes a key in
any case for a field. A manifest that relies on it is one thing for the registry and another for the
client (CVE-2021-41190 was of this kind), so it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any


class Ambiguous(ValueError):
    """Two readers may understand the document differently."""


def check_unambiguous(body: bytes, fields: Collection[str], nested: Collection[str]) -> None:
    """Raise `Ambiguous` for a key that is there twice, or that is a field in another case.

    Duplicates are looked for everywhere; the case of `fields` in the document itself and in the
    objects that `nested` names, alone or in a list. The body must be JSON (`ValueError` if not);
    nesting that is too deep raises `RecursionError`.
    """
    document = _DECODER.decode(body.decode())
    folded = {field.casefold(): field for field in fields}
    _check_case(document, folded, "")
    for name in nested:
        value = document.get(name)
        if isinstance(value, list):
            for position, entry in enumerate(value):
                _check_case(entry, folded, f" in {name}[{position}]")
        elif value is not None:
            _check_case(value, folded, f" in {name}")


def _check_case(document: Any, folded: Mapping[str, str], where: str) -> None:
    for key in document:
        field = folded.get(key.casefold(), key)
        if key != field:
            raise Ambiguous(f"the field {key[:40]!r}{where} is to be written {field!r}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Ambiguous(f"the key {key[:40]!r} is there twice")
            seen.add(key)
    return document


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
