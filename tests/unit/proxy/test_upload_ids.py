# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.proxy.upload_ids import UploadId, name_hash

SESSION = "0123456789abcdef" * 2
ID = UploadId.of(SESSION, "team/app", "p1.example:5000")


def test_an_id_says_session_repository_and_owner() -> None:
    assert UploadId.parse(str(ID)) == ID
    assert ID.session == SESSION
    assert ID.is_of("team/app")
    assert not ID.is_of("team/other")
    assert ID.owner == name_hash("p1.example:5000") != name_hash("p2.example:5000")


def test_an_id_outlives_the_process_and_the_version() -> None:
    assert str(ID) == f"{SESSION}-c3d0275da0932f65-da8b7cae"


def test_an_id_of_another_session_is_not_of_the_repository() -> None:
    other = UploadId(SESSION[::-1], ID.binding, ID.owner)
    assert not other.is_of("team/app")


@pytest.mark.parametrize(
    "text",
    [
        "",
        SESSION,
        str(ID)[:-9],
        str(ID)[:-1],
        f"{ID}0",
        f"{ID}\n",
        str(ID).upper(),
        str(ID).replace("-", "_"),
        f"../{ID}",
        str(ID).replace("0", "\N{FULLWIDTH DIGIT ZERO}"),
    ],
)
def test_anything_else_is_no_id(text: str) -> None:
    assert UploadId.parse(text) is None


@given(st.text())
def test_whatever_is_read_was_written_so(text: str) -> None:
    found = UploadId.parse(text)
    assert found is None or str(found) == text
