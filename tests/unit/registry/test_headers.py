# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from shoal.registry.headers import MAX_WARNINGS, add_warnings


def warnings(*texts: str) -> list[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    add_warnings(headers, texts)
    return headers.getall("Warning", [])


def test_a_warning_has_the_form_of_the_spec() -> None:
    assert warnings("this is deprecated") == ['299 - "this is deprecated"']
    assert warnings('a "b" \\ c') == ['299 - "a \\"b\\" \\\\ c"']
    assert warnings("a\r\nX: y\0ä") == ['299 - "a??X: y??"']
    assert warnings() == []


def test_warnings_beyond_the_limit_are_left_out() -> None:
    assert warnings("x" * MAX_WARNINGS, "short") == ['299 - "short"']
    assert len(warnings(*["x" * 1000] * 10)) == 4


@given(st.lists(st.text(max_size=2000), max_size=8))
def test_whatever_is_said_fits_and_stays_in_its_line(texts: list[str]) -> None:
    found = warnings(*texts)
    assert sum(map(len, found)) <= MAX_WARNINGS
    assert all(line.isascii() and line.isprintable() for line in found)
