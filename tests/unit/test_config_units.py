# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config.units import (
    format_bytes,
    format_duration,
    format_rate,
    join_address,
    parse_bytes,
    parse_duration,
    parse_rate,
    split_address,
)


@pytest.mark.parametrize(
    "text,size",
    [
        ("0", 0),
        ("17B", 17),
        ("512KiB", 512 * 1024),
        ("1.5 GiB", 3 * 2**29),
        ("10MB", 10_000_000),
        ("2TiB", 2**41),
    ],
)
def test_sizes_with_units_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "5", "5 K", "-1KiB", "KiB", "1e3KiB", "1kib", "٣KiB", "1KiB x"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size with its unit"):
        parse_bytes(text)


@pytest.mark.parametrize(
    "text,seconds", [("0", 0.0), ("500ms", 0.5), ("5s", 5.0), ("1.5m", 90.0), ("2h", 7200.0)]
)
def test_durations_with_units_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 sec", "-1s", "s", "1s1s", "∞s"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration with its unit"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_size_reads_back_as_it_was_written(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size


@given(st.integers(min_value=0, max_value=10**10))
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(
        milliseconds / 1000
    )


@pytest.mark.parametrize(
    "text,parts",
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("[::1]:0", ("::1", 0)),
        ("origin-0.shoal_net.local:65535", ("origin-0.shoal_net.local", 65535)),
    ],
)
def test_addresses_are_split_and_joined(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts
    assert join_address(*parts) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":5000",
        "host:",
        "host:65536",
        "host:-1",
        "::1:5000",
        "[::1]",
        "a b:1",
        "h:٣",
        "[x]:1",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host"):
        split_address(text)


@pytest.mark.parametrize(
    "text, rate",
    [("0", 0.0), ("100MB/s", 1e8), ("1.5GiB/s", 1.5 * 2**30), (" 500 KB/s ", 500_000.0)],
)
def test_rates_with_units_are_read(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "5", "0/s", "100MB", "100MB/m", "100Mbit/s", "-1MB/s", "/s"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="100MB/s"):
        parse_rate(text)


@given(st.integers(0, 2**50))
def test_a_rate_reads_back_as_it_was_written(rate: int) -> None:
    assert parse_rate(format_rate(float(rate))) == rate
