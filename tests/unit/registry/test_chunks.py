# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.errors import BlobUploadInvalid, SizeInvalid
from shoal.registry.chunks import parse_chunk_range, received_range

OFFSETS = st.integers(0, 10**15)
SIZES = st.integers(1, 10**12)


@given(OFFSETS, SIZES)
def test_a_range_names_its_first_and_its_last_byte(offset: int, size: int) -> None:
    assert parse_chunk_range(f"{offset}-{offset + size - 1}", None) == (offset, size)


@given(OFFSETS, SIZES)
def test_the_form_of_rfc_9110_says_the_same(offset: int, size: int) -> None:
    last = offset + size - 1
    assert parse_chunk_range(f"bytes {offset}-{last}/{last + 1}", size) == (offset, size)
    assert parse_chunk_range(f"bytes {offset}-{last}/*", size) == (offset, size)


@given(OFFSETS, SIZES, st.integers(0, 10**12))
def test_a_range_must_agree_with_content_length(offset: int, size: int, announced: int) -> None:
    header = f"{offset}-{offset + size - 1}"
    if announced == size:
        assert parse_chunk_range(header, announced) == (offset, size)
    else:
        with pytest.raises(SizeInvalid):
            parse_chunk_range(header, announced)


@pytest.mark.parametrize(
    "header",
    ["", "-", "5-", "-5", "9-3", "0-0-0", "a-b", "0x0-0x9", "²-³", "0-9\r\nX: y", "0-" + "9" * 40],
)
def test_what_is_no_range_is_refused(header: str) -> None:
    with pytest.raises(BlobUploadInvalid):
        parse_chunk_range(header, None)


@given(st.text(max_size=40))
def test_no_text_does_worse_than_be_refused(header: str) -> None:
    try:
        offset, size = parse_chunk_range(header, None)
    except BlobUploadInvalid:
        return
    assert offset >= 0
    assert size > 0


@given(SIZES)
def test_the_progress_is_a_range_that_starts_at_zero(size: int) -> None:
    assert parse_chunk_range(received_range(size), None) == (0, size)


def test_an_empty_session_says_zero_to_zero() -> None:
    assert received_range(0) == "0-0"
