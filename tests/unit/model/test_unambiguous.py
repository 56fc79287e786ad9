# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.unambiguous import Ambiguous, check_unambiguous

FIELDS = frozenset({"size", "layers", "mediaType"})
KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def check(text: str) -> None:
    check_unambiguous(text.encode(), FIELDS, ("layers", "one"))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": 1, "\\u0061": 2}',
        '{"x": {"a": 1, "a": 2}}',
        '{"x": [[{"a": 1, "b": 2, "a": 3}]]}',
        '{"Size": 1}',
        '{"layers": [{"size": 1}, {"SIZE": 1}]}',
        '{"one": {"mediatype": ""}}',
        '{"LAYERS": []}',
    ],
)
def test_what_two_readers_may_read_differently_is_refused(text: str) -> None:
    with pytest.raises(Ambiguous):
        check(text)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"size": 1, "layers": [{"size": 1}, {"size": 2}], "one": null}',
        '{"annotations": {"Size": 1, "size": 2, "SIZE": 3}}',
        '{"layers": [], "x": [{"a": 1}, {"a": 1}]}',
    ],
)
def test_what_all_read_alike_is_taken(text: str) -> None:
    check(text)


@given(st.dictionaries(KEYS, VALUES, max_size=3))
def test_a_document_written_from_memory_is_taken(document: dict[str, Any]) -> None:
    check(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "{} {}", '{"a": 01}'])
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check(text)
