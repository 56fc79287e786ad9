# SPDX-License-Identifier: Apache-2.0
"""Ranges of uploads (OCI distribution-spec, "Pushing a blob in chunks"). Pure.

They are not those of RFC 9110: ``<start>-<end>``, both inclusive, and no unit.
"""

from __future__ import annotations

import re

from shoal.model.errors import BlobUploadInvalid, SizeInvalid

# Some clients send the form of RFC 9110, "bytes 0-9/10"; it says the same.
_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?", re.ASCII)


def parse_chunk_range(header: str, announced: int | None) -> tuple[int, int]:
    """Return offset and size of a chunk; `announced` is its Content-Length, if there is one.

    Raises `BlobUploadInvalid` for what is not a range, `SizeInvalid` when the two disagree.
    """
    match = _RANGE.fullmatch(header.strip())
    start, last = (int(match[1]), int(match[2])) if match else (0, -1)
    if last < start:
        raise BlobUploadInvalid(
            f"Content-Range {header[:80]!r} is not <start>-<end>, both inclusive, of a chunk"
        )
    size = last - start + 1
    if announced is not None and announced != size:
        raise SizeInvalid(
            f"Content-Range {header[:80]} names {size} bytes, but Content-Length is {announced}"
        )
    return start, size


def received_range(size: int) -> str:
    """Return the Range header of a session: what was received so far.

    The form cannot say "nothing": an empty session answers ``0-0``, as distribution does.
    """
    return f"0-{max(size - 1, 0)}"
