# SPDX-License-Identifier: Apache-2.0
"""How long a registry wants to be left alone, by what its answers say. Pure: no I/O, no clock.

Understood: ``Retry-After`` (RFC 9110, section 10.2.3; seconds or a date), ``RateLimit-Reset`` with
``RateLimit-Remaining: 0`` (draft-ietf-httpapi-ratelimit-headers-03), and Docker Hub's
``ratelimit-limit: 100;w=21600``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST = 3600.0
"""No answer keeps a registry unasked for more than this many seconds."""

FIRST, MOST = 2.0, 120.0
"""Seconds after the first 429 that names no time, doubled for each that follows, up to this."""

_QUOTA = re.compile(r"\s*(\d{1,12})\s*(?:[,;].*)?", re.ASCII)
_WINDOW = re.compile(r";\s*w=(\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Quota:
    """What an answer says about the requests that are left."""

    limit: int | None
    remaining: int | None

    window: float | None
    """Seconds over which `limit` counts."""


class RateLimit:
    """One registry's wishes. `now` is in seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self.quota = Quota(None, None, None)
        """What the last answer that spoke of it said."""
        self._until = 0.0
        self._refusals = 0

    def wait(self, now: float) -> float:
        """Seconds for which the registry is not to be asked; 0: ask."""
        return max(0.0, self._until - now)

    def observe(
        self, status: int, headers: Mapping[str, str], now: float, today: datetime | None = None
    ) -> float | None:
        """Take note of an answer; return for how long it wants us gone, None: it does not say.

        `today` is the wall clock, for a Retry-After that is a date.
        """
        self._note_quota(headers)
        seconds = self._asked(status, headers, today or datetime.now(UTC))
        if seconds is not None:
            seconds = min(seconds, LONGEST)
            self._until = max(self._until, now + seconds)
        return seconds

    def _asked(self, status: int, headers: Mapping[str, str], today: datetime) -> float | None:
        if status in (429, 503):
            named = retry_after(headers, today)
            if named is None and status == 429:
                self._refusals += 1
                return self._guess()
            return named
        if status < 500:
            self._refusals = 0
        reset = headers.get("RateLimit-Reset", "")
        if self.quota.remaining == 0 and (match := _QUOTA.fullmatch(reset)) is not None:
            return float(match[1])
        return None

    def _guess(self) -> float:
        """Until one request of the quota is free again, or a time that doubles."""
        limit, window = self.quota.limit, self.quota.window
        if limit and window:
            return max(FIRST, window / limit)
        return float(min(MOST, FIRST * 2 ** min(self._refusals - 1, 10)))

    def _note_quota(self, headers: Mapping[str, str]) -> None:
        limit = _QUOTA.fullmatch(headers.get("RateLimit-Limit", ""))
        remaining = _QUOTA.fullmatch(headers.get("RateLimit-Remaining", ""))
        if limit is None and remaining is None:
            return
        window = _WINDOW.search(headers.get("RateLimit-Limit", ""))
        self.quota = Quota(
            int(limit[1]) if limit else None,
            int(remaining[1]) if remaining else None,
            float(window[1]) if window else None,
        )


def retry_after(headers: Mapping[str, str], today: datetime) -> float | None:
    """Seconds of a Retry-After header, from now on where it is a date; None: none, or no sense."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 12:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - today).total_seconds())
