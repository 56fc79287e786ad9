# SPDX-License-Identifier: Apache-2.0
"""Byte ranges of requests (RFC 9110, sections 14.1.2, 14.2, 14.6 and 15.5.17)."""

from __future__ import annotations

import re
from typing import NamedTuple

from shoal.model.errors import RangeInvalid

MAX_RANGES = 64
"""Ranges that one request may ask for; clients that pull parts of layers ask for some tens."""

_SPEC = re.compile(r"(\d*)-(\d*)", re.ASCII)
_BLANK = " \t"
_HUGE = 2**63


class ByteRange(NamedTuple):
    """Half open: the first byte, and the one after the last."""

    start: int
    stop: int


def parse_ranges(header: str | None, size: int) -> list[ByteRange] | None:
    """The parts of a content of `size` bytes that a Range header asks for, in its order.

    None means the whole: no header, another unit, or a form that is not valid (a server may ignore
    those). So it does for more than `MAX_RANGES`, and for ranges that overlap so much that together
    they are longer than the content: such requests are mistakes or attacks, and the whole is an
    answer to them.

    Ranges without a byte of the content are left out. Raises `RangeInvalid` (416) when none is
    left, and for a range that ends before it begins.
    """
    unit, equals, listed = (header or "").partition("=")
    if not equals or unit.strip(_BLANK).lower() != "bytes" or listed.count(",") >= MAX_RANGES:
        return None
    specs = [spec for text in listed.split(",") if (spec := text.strip(_BLANK))]
    matches = [_SPEC.fullmatch(spec) for spec in specs]
    pairs = [(match[1], match[2]) for match in matches if match and (match[1] or match[2])]
    if not pairs or len(pairs) != len(specs):
        return None
    if size == 0 and any(not first and _number(last) for first, last in pairs):
        return None  # satisfiable, but Content-Range cannot say "no bytes": the whole is the same
    parts = [part for first, last in pairs if (part := _part(first, last, size)) is not None]
    if not parts:
        raise _unsatisfiable("has no byte of it", header or "", size)
    if sum(stop - start for start, stop in parts) > size:
        return None
    return parts


def content_range(start: int, stop: int, size: int) -> str:
    """The Content-Range of a 206 for the half-open range."""
    return f"bytes {start}-{stop - 1}/{size}"


def _part(first: str, last: str, size: int) -> ByteRange | None:
    """The bytes of the content that lie in one range, or None for none."""
    if not first:
        part = ByteRange(max(0, size - _number(last)), size)
        return part if part.start < size else None
    start = _number(first)
    stop = _number(last) + 1 if last else _HUGE + 1
    if stop <= start:
        raise _unsatisfiable("ends before it begins", f"{first[:20]}-{last[:20]}", size)
    return ByteRange(start, min(stop, size)) if start < size else None


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) < 19 else _HUGE


def _unsatisfiable(what: str, asked: str, size: int) -> RangeInvalid:
    return RangeInvalid(
        f"the content has {size} bytes, and the range {asked[:80]!r} {what}",
        headers={"Content-Range": f"bytes */{size}"},
    )
