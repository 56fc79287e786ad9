# SPDX-License-Identifier: Apache-2.0
"""How much to ask of one peer in advance, and when to give up on it. The clock is a parameter."""

from __future__ import annotations

_FAST = 0.5
"""Seconds in which a piece should come; while it does, more is asked for in advance."""

_SLOW = 1.5
"""Seconds above which less is asked for in advance, down to two pieces: while one comes, the next
waits there for its turn. With one alone, a host at 12.5 MB/s had too little under way to keep its
link busy."""

MAX_PIECES = 128
"""Pieces asked for in advance at most, however small; less than what a peer bears."""

_FIRST_PENALTY = 2.0
_MAX_PENALTY = 60.0

_MIN_TIMEOUT = 1.0
"""Seconds of silence that any peer is allowed, however quick it was."""

AHEAD = 24
"""Pieces that a host asks for in advance over all peers that are not seeds."""

KEPT = 8
"""Of these, the part that is kept for pieces in a reader's window: the downlink is busy without
them, and the rest of the blob must not fill the queues that a reader's next pieces go through."""


LED = 2
"""Of what is left, the part that is kept for the layers that lead their images (`order`). Else a
host fetches most of the second layer beside the first one, and its readers wait as much longer."""


class Pace:
    """The pipeline of one peer: grows while pieces come quickly, shrinks when they queue up."""

    def __init__(self, *, limit: int, timeout: float) -> None:
        """`limit`: bytes asked for in advance at most. `timeout`: seconds of silence to bear."""
        self._limit = limit
        self._timeout = timeout
        self._target = limit // 4
        self._strikes = 0
        self._away_until = 0.0
        self._last_bytes = 0.0
        self._typical = 0.0
        """Smoothed seconds from asking for a piece until it is whole; 0 before the first."""
        self._way = 0.0
        """Smoothed seconds from a piece's first byte until it is whole; 0 before the first."""
        self._load = 0
        """Pieces that others waited for there when the last one was sent."""
        self.in_flight = 0
        """Bytes asked for and not yet come."""
        self.expected = 0.0
        """Seconds that another piece would take: how long the last ones were on their way, for it
        and for each that stands before it there. 0 when none has come."""
        self._pieces = 0

    def room(self, length: int, now: float) -> bool:
        """Whether a piece of this length may be asked for now; one always may, unless punished."""
        if self.away(now) or self._pieces >= MAX_PIECES:
            return False
        return self.in_flight == 0 or self.in_flight + length <= self._target

    def asked(self, length: int, now: float) -> None:
        """A piece was asked for."""
        if self.in_flight == 0:
            self._last_bytes = now
        self.in_flight += length
        self._pieces += 1
        self._expect()

    def dropped(self, length: int) -> None:
        """A piece will not come: cancelled, rejected or given up."""
        self.in_flight -= length
        self._pieces -= 1
        self._expect()

    def bytes_came(self, now: float) -> None:
        """Some of a piece's bytes came."""
        self._last_bytes = now

    def completed(self, length: int, took: float, *, way: float, load: int) -> None:
        """A piece is whole, `took` seconds after it was asked for.

        `way`: seconds since its first byte. `load`: pieces that others waited for at the peer when
        it was sent. `took` says how long the queue there was when the piece was asked for, which is
        old news; by that alone hosts must ask for much in advance lest uplinks idle.
        """
        self.in_flight -= length
        self._pieces -= 1
        self._strikes = 0
        self._typical += (took - self._typical) / 4 if self._typical else took
        self._way += (way - self._way) / 4 if self._way else way
        self._load = load
        self._expect()
        if took < _FAST:
            self._target = min(self._limit, self._target + length)
        elif took > _SLOW:
            self._target = max(min(2 * length, self._limit), self._target // 2)

    def _expect(self) -> None:
        self.expected = self._way * (1 + self._pieces + self._load)

    def stalled(self, now: float) -> bool:
        """Bytes are due, and none came for much longer than its pieces take, or for the timeout."""
        return self.in_flight > 0 and now - self._last_bytes > self.patience()

    def patience(self) -> float:
        """Seconds of silence to bear: a few times what a piece takes, within 1 s and the limit.

        Where pieces take half of the limit anyhow (large ones on a slow link), it is twice that.
        """
        if not self._typical:
            return self._timeout
        most = max(self._timeout, 2 * self._typical)
        return min(most, max(_MIN_TIMEOUT, 4 * self._typical))

    def away(self, now: float) -> bool:
        """Whether it is asked for nothing, as it stalled."""
        return now < self._away_until

    def punish(self, now: float) -> int:
        """Ask nothing of it for a while, longer each time; returns how often it stalled."""
        self._away_until = now + min(_MAX_PENALTY, _FIRST_PENALTY * 2**self._strikes)
        self._strikes += 1
        self._target = self._limit // 8
        return self._strikes


class Intake:
    """How many pieces a host asks for in advance of all its peers together, seeds aside.

    Enough that its downlink never waits, and no more: what is asked for stands in a peer's queue,
    and neither a reader's next piece nor a piece that just turned rare can overtake it there. The
    queues of seeds are long, and what they show is not to be had elsewhere: were it counted, the
    hosts that seeds begin with would come last.
    """

    def __init__(self, *, ahead: int = AHEAD) -> None:
        self._ahead = ahead
        self._due = 0

    def room(self) -> bool:
        """Whether another piece may be asked for."""
        return self._due < self._ahead

    def spare(self) -> bool:
        """Whether a piece may be asked for that is in no reader's window."""
        return self._due < self._ahead - KEPT

    def idle(self) -> bool:
        """Whether a piece may be asked for of a layer that others come before."""
        return self._due < self._ahead - KEPT - LED

    def asked(self) -> None:
        """A piece was asked for."""
        self._due += 1

    def settled(self) -> None:
        """A piece has come, or will not."""
        self._due -= 1
