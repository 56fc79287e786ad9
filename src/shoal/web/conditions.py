# SPDX-License-Identifier: Apache-2.0
"""Conditions of a request (RFC 9110, section 13), and headers that come in several lines."""

from __future__ import annotations

import re

from aiohttp import web

from shoal.web.ranges import ByteRange, parse_ranges

_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


def merged_header(request: web.BaseRequest, name: str) -> str:
    """Return all lines of a list header as one (RFC 9110, section 5.3); empty for none."""
    return ", ".join(request.headers.getall(name, ()))


def not_modified(request: web.BaseRequest, etag: str) -> bool:
    """Whether If-None-Match names the entity tag (with its quotes); weak comparison."""
    condition = merged_header(request, "If-None-Match")
    return condition.strip() == "*" or etag in _ENTITY_TAG.findall(condition)


def wanted_ranges(request: web.BaseRequest, etag: str, size: int) -> list[ByteRange] | None:
    """Return the ranges to send, None for the whole; raises `RangeInvalid`.

    Range is for GET alone, and only while If-Range, if sent, names this very content.
    """
    condition = request.headers.get("If-Range")
    if request.method != "GET" or (condition is not None and condition.strip() != etag):
        return None
    lines = request.headers.getall("Range", ())
    return parse_ranges(lines[0], size) if len(lines) == 1 else None
