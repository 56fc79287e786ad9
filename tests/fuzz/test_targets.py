# SPDX-License-Identifier: Apache-2.0
"""Every fuzz target for a short time; `python -m tests.fuzz` runs them for as long as wanted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import fuzz
from tests.fuzz.inputs import inputs
from tests.fuzz.targets import EXAMPLES, TARGETS


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_parser_survives(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(inputs(EXAMPLES[name])))


@pytest.mark.parametrize("name", TARGETS)
def test_the_examples_are_taken(name: str) -> None:
    for example in EXAMPLES[name]:
        TARGETS[name](example)


def test_a_target_that_fails_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(data: bytes) -> None:
        assert b".." not in data

    monkeypatch.setitem(TARGETS, "names", picky)
    with pytest.raises(AssertionError):
        fuzz("names", 20)


def test_fuzzing_ends_when_its_time_is_over() -> None:
    assert fuzz("digest", 0.01) > 0
