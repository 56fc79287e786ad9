# SPDX-License-Identifier: Apache-2.0
"""Byte ranges of requests (RFC 9110, sections 14.1.2, 14.2 and 15.5.17)."""

from __future__ import annotations

import re
from typing import NamedTuple

from shoal.model.errors import RangeInvalid

_SPEC = re.compile(r"(\d*)-(\d*)", re.ASCII)
_HUGE = 2**63


class ByteRange(NamedTuple):
    """Half open: the first byte, and the one after the last."""

    start: int
    stop: int


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The part of a content of `size` bytes that a Range header asks for.

    None means the whole: no header, another unit, a form that is not valid (a server ignores
    those), or several ranges. Raises `RangeInvalid` (416) when no byte of the content is in the
    range.
    """
    unit, equals, spec = (header or "").partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    match = _SPEC.fullmatch(spec.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return _suffix(_number(match[2]), size)
    start = _number(match[1])
    last = _number(match[2]) if match[2] else _HUGE
    if last < start:
        return None
    if start >= size:
        raise _unsatisfiable(f"starts at {start}", size)
    return ByteRange(start, min(last + 1, size))


def content_range(start: int, stop: int, size: int) -> str:
    """The Content-Range of a 206 for the half-open range."""
    return f"bytes {start}-{stop - 1}/{size}"


def _suffix(length: int, size: int) -> ByteRange | None:
    if length == 0:
        raise _unsatisfiable("asks for the last 0 bytes", size)
    if size == 0:
        return None  # satisfiable, but Content-Range cannot say "no bytes": the whole is the same
    return ByteRange(max(0, size - length), size)


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) < 19 else _HUGE


def _unsatisfiable(what: str, size: int) -> RangeInvalid:
    return RangeInvalid(
        f"the range {what}, but the content has {size} bytes",
        headers={"Content-Range": f"bytes */{size}"},
    )
