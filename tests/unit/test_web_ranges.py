# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.errors import RangeInvalid
from shoal.web.ranges import MAX_RANGES, content_range, parse_ranges


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
    assert parse_ranges(header, 10) == [part]


@pytest.mark.parametrize(
    "header,parts",
    [
        ("bytes=1-2,4-5", [(1, 3), (4, 6)]),
        ("bytes=4-5 ,\t1-2", [(4, 6), (1, 3)]),
        ("bytes=,1-2,,4-5,", [(1, 3), (4, 6)]),
        ("bytes=0-0,-1,5-", [(0, 1), (9, 10), (5, 10)]),
        ("bytes=1-2,20-30,-0", [(1, 3)]),
        ("bytes=1-3,2-4", [(1, 4), (2, 5)]),
    ],
)
def test_several_ranges_of_ten_bytes(header: str, parts: list[tuple[int, int]]) -> None:
    assert parse_ranges(header, 10) == parts


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=,",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=1-2,x",
        "bytes=1 -2",
        "bytes=\u0661-\u0662",
        "bytes=0-\u20035",
        "items=0-1",
        "0-1",
    ],
)
def test_what_is_no_range_means_the_whole(header: str | None) -> None:
    assert parse_ranges(header, 10) is None


def test_more_than_the_whole_is_the_whole() -> None:
    assert parse_ranges("bytes=0-,0-0", 10) is None
    assert parse_ranges("bytes=0-4,3-9", 10) is None


def test_too_many_ranges_are_the_whole() -> None:
    header = "bytes=" + ",".join(f"{start}-{start}" for start in range(MAX_RANGES))
    parts = parse_ranges(header, 1000)
    assert parts is not None
    assert len(parts) == MAX_RANGES
    assert parse_ranges(f"{header},999-", 1000) is None
    assert parse_ranges("bytes=" + "0-0," * 1_000_000, 1000) is None


@pytest.mark.parametrize(
    "header",
    [
        "bytes=10-",
        "bytes=10-20",
        "bytes=-0",
        "bytes=-0,10-",
        "bytes=5-2",
        "bytes=1-2,5-2",
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_a_range_outside_the_content_is_refused_with_its_size(header: str) -> None:
    with pytest.raises(RangeInvalid, match="10 bytes") as caught:
        parse_ranges(header, 10)
    assert caught.value.status == 416
    assert caught.value.headers == {"Content-Range": "bytes */10"}
    assert len(caught.value.message) < 300


def test_of_nothing_only_the_whole_can_be_had() -> None:
    assert parse_ranges("bytes=-5", 0) is None
    with pytest.raises(RangeInvalid):
        parse_ranges("bytes=0-", 0)


@given(st.text(alphabet="bytes=0123456789-, ", max_size=30), st.integers(0, 1000))
def test_every_answer_lies_in_the_content(header: str, size: int) -> None:
    try:
        parts = parse_ranges(header, size)
    except RangeInvalid:
        return
    if parts is not None:
        assert parts
        assert all(0 <= part.start < part.stop <= size for part in parts)
        assert sum(part.stop - part.start for part in parts) <= size


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=5))
def test_ranges_within_the_content_are_given_as_they_were_asked_for(
    pairs: list[tuple[int, int]],
) -> None:
    wanted = [(min(pair), max(pair) + 1) for pair in pairs]
    header = "bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in wanted)
    fits = sum(stop - start for start, stop in wanted) <= 100
    assert parse_ranges(header, 100) == (wanted if fits else None)


def test_content_range_is_inclusive() -> None:
    assert content_range(2, 5, 10) == "bytes 2-4/10"
