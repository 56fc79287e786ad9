# SPDX-License-Identifier: Apache-2.0
"""How much one peer may say and ask for in vain. Pure: the clock is a parameter.

Each frame alone is allowed, and honest peers send some that come to nothing: a cancel that crosses
its piece, an `Open` of a blob that was evicted meanwhile. Who sends thousands of them wants to keep
this host busy. What is bounded is a rate over time and not a number, as the connection of an honest
peer lasts for days.
"""

from __future__ import annotations

from shoal.model.digest import Digest
from shoal.swarm.limits import Bucket
from shoal.swarm.wire import ProtocolError

FRAMES = 4096
"""Frames at once that change nothing: pings, pieces shown again, cancels of what is on its way."""

FRAMES_PER_SECOND = 256.0

OPENS = 1024
"""Blobs opened at once that are not here, or that were open over the same connection before: each
costs a look-up, and perhaps a file that is opened."""

OPENS_PER_SECOND = 8.0

REPEATS = 64
"""Pieces of a blob sent a second time, beyond the number that it has."""

REPEATED_WITHIN = 600.0
"""Seconds after which they may be asked for once more: an agent that had to evict the blob does."""

_MOST_BLOBS = 4096
"""Blobs of which it is remembered what was sent over one connection."""


class Flood(ProtocolError):
    """The other side keeps to the protocol, but asks for ever."""


class _Given:
    """The pieces of a blob that a peer was sent."""

    __slots__ = ("pieces", "repeats")

    def __init__(self, count: int) -> None:
        self.pieces = 0
        self.repeats = Bucket((count + REPEATS) / REPEATED_WITHIN, count + REPEATS)


class Floods:
    """The account of one connection. Every method raises `Flood` when it is overdrawn."""

    def __init__(self) -> None:
        self._frames = Bucket(FRAMES_PER_SECOND, FRAMES)
        self._opens = Bucket(OPENS_PER_SECOND, OPENS)
        self._given: dict[Digest, _Given] = {}

    def in_vain(self, now: float) -> None:
        """A frame came that changes nothing."""
        if not _take(self._frames, now):
            raise Flood("it sends frame after frame that changes nothing")

    def absent(self, now: float) -> None:
        """It opened a blob that is not here."""
        if not _take(self._opens, now):
            raise Flood("it opens one blob after the other that is not here")

    def opened(self, blob: Digest, count: int, now: float) -> None:
        """It opened a blob of `count` pieces that is here."""
        if blob not in self._given:
            self._given[blob] = _Given(count)
            if len(self._given) > _MOST_BLOBS:
                del self._given[next(iter(self._given))]
        elif not _take(self._opens, now):
            raise Flood("it opens the same blobs over and over")

    def given(self, blob: Digest, count: int, index: int, now: float) -> None:
        """A piece of a blob of `count` pieces is about to be sent to it."""
        given = self._given.get(blob)
        if given is None:
            given = self._given[blob] = _Given(count)
        again = given.pieces >> index & 1
        given.pieces |= 1 << index
        if again and not _take(given.repeats, now):
            raise Flood("it asks for the same pieces over and over")


def _take(bucket: Bucket, now: float) -> bool:
    if bucket.tokens(now) < 1:
        return False
    bucket.take(1, now)
    return True
