# SPDX-License-Identifier: Apache-2.0
"""One deadline per request: the caller's remaining time travels in a header; all spend from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

HEADER = "Shoal-Deadline-Ms"
"""Request header: milliseconds that the caller still waits."""

LONGEST = 24 * 3600.0
"""No request waits longer than this many seconds, whatever a header says."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock after which the one who asked no longer waits."""

    at: float

    HEADER = HEADER

    @classmethod
    def after(cls, seconds: float, now: float | None = None) -> Deadline:
        """The deadline `seconds` from now."""
        return cls((time.monotonic() if now is None else now) + seconds)

    @classmethod
    def from_headers(
        cls, headers: Mapping[str, str], default: float, now: float | None = None
    ) -> Deadline:
        """The caller's deadline; `default` seconds when it sent none, or none that can be read."""
        text = headers.get(HEADER)
        if text is not None and text.isascii() and text.isdigit() and len(text) <= 12:
            return cls.after(min(int(text) / 1000, LONGEST), now)
        return cls.after(default, now)

    def remaining(self, now: float | None = None) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.at - (time.monotonic() if now is None else now))

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining() <= 0

    def header_value(self, now: float | None = None) -> str:
        """Milliseconds left, as the header carries them."""
        return str(int(self.remaining(now) * 1000))

    def at_most(self, seconds: float, now: float | None = None) -> Deadline:
        """This deadline, or the one `seconds` from now when that comes first."""
        return min(self, Deadline.after(seconds, now), key=lambda deadline: deadline.at)

    def with_transfer(self, size: int, slowest: int = 4 * 1024 * 1024) -> Deadline:
        """This deadline, plus the time for `size` bytes at the slowest rate (bytes/s) accepted."""
        return Deadline(self.at + size / slowest)
