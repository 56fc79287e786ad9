# SPDX-License-Identifier: Apache-2.0
"""Sizes and durations on the command line, written as in config files."""

from __future__ import annotations

import typer


def size_in_bytes(text: str) -> int:
    """Bytes in ``256MiB``; at least 1."""
    from shoal.config.units import parse_bytes

    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if size < 1:
        raise typer.BadParameter("expected at least 1B")
    return size


def seconds(text: str) -> float:
    """Seconds in ``500ms``."""
    from shoal.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def bytes_per_second(text: str) -> float:
    """Bytes per second in ``12.5MB/s``."""
    from shoal.config.units import parse_rate

    try:
        return parse_rate(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
