# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.errors import RangeInvalid
from shoal.web.ranges import content_range, parse_range


@pytest.mark.parametrize(
    "header,part",
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-", (2, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=9-9", (9, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("Bytes= 2-4 ", (2, 5)),
        ("bytes=2-" + "9" * 5000, (2, 10)),
        ("bytes=" + "0" * 5000 + "2-4", (2, 5)),
    ],
)
def test_a_range_of_ten_bytes(header: str, part: tuple[int, int]) -> None:
    assert parse_range(header, 10) == part


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-2",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=1-2,4-5",
        "bytes=1 -2",
        "bytes=\u0661-\u0662",
        "items=0-1",
        "0-1",
    ],
)
def test_what_is_no_single_range_means_the_whole(header: str | None) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize(
    "header", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=" + "9" * 5000 + "-"]
)
def test_a_range_outside_the_content_is_refused_with_its_size(header: str) -> None:
    with pytest.raises(RangeInvalid, match="10 bytes") as caught:
        parse_range(header, 10)
    assert caught.value.status == 416
    assert caught.value.headers == {"Content-Range": "bytes */10"}


def test_of_nothing_only_the_whole_can_be_had() -> None:
    assert parse_range("bytes=-5", 0) is None
    with pytest.raises(RangeInvalid):
        parse_range("bytes=0-", 0)


@given(st.text(alphabet="bytes=0123456789-, ", max_size=20), st.integers(0, 1000))
def test_every_answer_lies_in_the_content(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except RangeInvalid:
        return
    if part is not None:
        assert 0 <= part.start < part.stop <= size
        assert content_range(part.start, part.stop, size).startswith("bytes ")


def test_content_range_is_inclusive() -> None:
    assert content_range(2, 5, 10) == "bytes 2-4/10"
