# SPDX-License-Identifier: Apache-2.0
"""How many bytes may go now, and whose turn it is. Pure: the clock is a parameter.

Token buckets: one for all that goes in one direction, and one per blob. Who finds them empty waits
in line. Small blobs (manifests, configs) go first, since a whole pull waits for them; among blobs
of a kind the turn passes on with each grant, however many connections each of them has.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import chain

SMALL = 1024 * 1024
"""A blob of at most this many bytes goes before larger ones."""

_GRANT = 0.02
"""Seconds of the rate that are granted at a time, within the two bounds below."""

_MIN_GRANT = 16 * 1024
_MAX_GRANT = 1024 * 1024
_BURST = 0.05
"""Seconds of the rate that may be saved up; at least two grants."""

_SMALL_TURNS = 3
"""Grants to small blobs for one to a large one, so that the latter never stop."""

_MAX_IDLE_BLOBS = 64


@dataclass(frozen=True, slots=True)
class Share:
    """On whose account bytes go."""

    blob: Hashable
    small: bool = False


class Bucket:
    """Tokens that come at a steady rate; as many as the burst are kept."""

    def __init__(self, rate: float, burst: float) -> None:
        """`rate`: tokens per second."""
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at: float | None = None

    def tokens(self, now: float) -> float:
        """How many there are."""
        if self._at is not None:
            came = max(0.0, now - self._at) * self._rate
            self._tokens = min(self._burst, self._tokens + came)
        self._at = now if self._at is None else max(now, self._at)
        return self._tokens

    def take(self, count: float, now: float) -> None:
        """Take tokens; check first that they are there."""
        self._tokens = self.tokens(now) - count

    def give_back(self, count: float) -> None:
        """Tokens that were taken are not needed after all."""
        self._tokens = min(self._burst, self._tokens + count)

    def wait(self, count: float, now: float) -> float:
        """Seconds until there are that many."""
        return max(0.0, (count - self.tokens(now)) / self._rate)

    def full(self, now: float) -> bool:
        """Whether no more are kept."""
        return self.tokens(now) >= self._burst


@dataclass(frozen=True, slots=True)
class _Waiting:
    flow: Hashable
    count: int


_Line = OrderedDict[Hashable, deque[_Waiting]]


class Limiter:
    """The budget of one direction. A flow is whoever sends or receives; it waits once at a time."""

    def __init__(self, rate: float, per_blob: float) -> None:
        """Bytes per second over all, and for each blob; 0: no limit."""
        self._all = Bucket(rate, _burst(rate)) if rate else None
        self._per_blob = per_blob
        self._blobs: dict[Hashable, Bucket] = {}
        self._grant = min(_grant(limit) for limit in (rate, per_blob) if limit)
        self._small: _Line = OrderedDict()
        self._large: _Line = OrderedDict()
        self._small_turns = 0

    def take(self, flow: Hashable, share: Share, wanted: int, now: float) -> int:
        """Bytes that may go at once, at most `wanted`; 0: the flow waits until `next` names it."""
        count = min(wanted, self._grant)
        waiting = _Waiting(flow, count)
        if not self._small and not self._large and self._delay(share.blob, count, now) == 0:
            self._spend(share.blob, count, now)
            return count
        line = self._small if share.small else self._large
        line.setdefault(share.blob, deque()).append(waiting)
        return 0

    def give_back(self, share: Share, count: int) -> None:
        """Bytes that were granted did not go."""
        if self._all is not None:
            self._all.give_back(count)
        if share.blob in self._blobs:
            self._blobs[share.blob].give_back(count)

    def leave(self, flow: Hashable) -> None:
        """A flow no longer waits."""
        for line in (self._small, self._large):
            for blob, waiting in tuple(line.items()):
                rest = deque(it for it in waiting if it.flow != flow)
                if rest:
                    line[blob] = rest
                else:
                    del line[blob]

    def next(self, now: float) -> tuple[Hashable, int] | None:
        """A flow that waited, and the bytes that it is granted; None while none can go."""
        lines = [self._small, self._large]
        if self._small_turns >= _SMALL_TURNS:
            lines.reverse()
        for line in lines:
            for blob, waiting in line.items():
                first = waiting[0]
                if self._blob_delay(blob, first.count, now):
                    continue
                if self._all is not None and self._all.wait(first.count, now):
                    return None  # It is this one's turn, however little others would need.
                waiting.popleft()
                if waiting:
                    line.move_to_end(blob)
                else:
                    del line[blob]
                self._small_turns = self._small_turns + 1 if line is self._small else 0
                self._spend(blob, first.count, now)
                return first.flow, first.count
        return None

    def delay(self, now: float) -> float | None:
        """Seconds until `next` names a flow; None when nobody waits."""
        lines = chain(self._small.items(), self._large.items())
        return min((self._delay(blob, it[0].count, now) for blob, it in lines), default=None)

    def _delay(self, blob: Hashable, count: int, now: float) -> float:
        over_all = self._all.wait(count, now) if self._all is not None else 0.0
        return max(over_all, self._blob_delay(blob, count, now))

    def _blob_delay(self, blob: Hashable, count: int, now: float) -> float:
        bucket = self._blobs.get(blob)
        return bucket.wait(count, now) if bucket is not None else 0.0

    def _spend(self, blob: Hashable, count: int, now: float) -> None:
        if self._all is not None:
            self._all.take(count, now)
        if not self._per_blob:
            return
        bucket = self._blobs.get(blob)
        if bucket is None:
            if len(self._blobs) >= _MAX_IDLE_BLOBS:
                self._blobs = {key: it for key, it in self._blobs.items() if not it.full(now)}
            bucket = self._blobs[blob] = Bucket(self._per_blob, _burst(self._per_blob))
        bucket.take(count, now)


def _grant(rate: float) -> int:
    return int(min(_MAX_GRANT, max(_MIN_GRANT, rate * _GRANT)))


def _burst(rate: float) -> float:
    return max(2 * _grant(rate), rate * _BURST)
