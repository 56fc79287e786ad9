# SPDX-License-Identifier: Apache-2.0
"""Who is sent to, whom to dial and whom to let in. Pure: the clock is a parameter.

Pieces leave a host a few at a time, in turn over the peers that asked: a piece that is sent alone
is whole at its receiver, and can be passed on, in a fraction of the time that it takes beside
thirty others. The turn passes on with each piece, so nobody starves; there is nothing to choke,
because the peers of one fleet have no reason to hold back (Legout et al. need choking against free
riders).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

SLOTS = 2
"""Peers sent to at a time: the second fills the pauses of the first."""

SLOW = 1.0
"""Seconds after which a piece under way no longer holds up the others."""

MAX_SLOW = 16
"""Slow peers sent to beside those that hold a slot."""

LOOK = 0.25
"""Seconds between looks at what the peers that are sent to have taken, while others wait."""

TAKES = 32 * 1024
"""Bytes per second below which a peer takes next to nothing: it uses no uplink and holds up nobody,
so it counts neither as one that holds a slot nor as a slow one."""

IDLE = 1.0
"""Seconds after which a connection over which nothing is wanted may make room for another."""

TENURE = 10.0
"""Seconds that a connection in use is kept when others wait for its place."""

FEW = 2
"""Peers of its own that each blob may dial when the host has dialed enough for the others."""


@dataclass(slots=True)
class _Asker:
    urgent: deque[Hashable] = field(default_factory=deque)
    pieces: deque[Hashable] = field(default_factory=deque)
    queued: bool = False


class UploadSlots:
    """What the peers of one host have asked for, and whose turn it is.

    A piece is whatever the caller names it by, a blob and an index for one. To one peer goes one
    piece at a time, in the order in which it asked.
    """

    def __init__(self, *, slots: int = SLOTS, slow: float = SLOW, max_slow: int = MAX_SLOW) -> None:
        self._slots = slots
        self._slow = slow
        self._most = slots + max_slow
        self._askers: dict[str, _Asker] = {}
        self._turns: deque[str] = deque()
        self._waiting = 0
        """Pieces that were asked for and are not under way, over all peers."""
        self._sending: dict[str, float] = {}
        self._taken: dict[str, tuple[float, int]] = {}
        """When each peer that is sent to was last looked at, and the bytes that it had taken."""
        self._idle: set[str] = set()
        """Those of them that take next to nothing."""

    def ask(self, peer: str, piece: Hashable, *, urgent: bool = False) -> None:
        """A peer wants a piece; an `urgent` one (a small blob's) goes before its others."""
        asker = self._askers.get(peer)
        if asker is None:
            asker = self._askers[peer] = _Asker()
        (asker.urgent if urgent else asker.pieces).append(piece)
        self._waiting += 1
        self._queue(peer, asker, first=urgent)

    def cancel(self, peer: str, piece: Hashable) -> bool:
        """A peer no longer wants a piece; False when it is under way, or was never asked for."""
        asker = self._askers.get(peer)
        if asker is None:
            return False
        for pieces in (asker.urgent, asker.pieces):
            if piece in pieces:
                pieces.remove(piece)
                self._waiting -= 1
                return True
        return False

    def leave(self, peer: str) -> None:
        """A peer is gone."""
        self._waiting -= self.waiting(peer)
        self._askers.pop(peer, None)
        self._over(peer)

    def next(self, now: float) -> tuple[str, Hashable] | None:
        """The peer to send to next and the piece, noted as under way; None while slots are taken.

        Call `sent` when the piece has left.
        """
        if self._turns and self._full(now):
            return None
        while self._turns:
            peer = self._turns.popleft()
            asker = self._askers.get(peer)
            if asker is None:
                continue
            asker.queued = False
            if peer in self._sending:
                continue
            pieces = asker.urgent or asker.pieces
            if pieces:
                self._sending[peer] = now
                self._waiting -= 1
                return peer, pieces.popleft()
        return None

    def sent(self, peer: str) -> None:
        """A piece has left, or will not be sent: the peer's next one waits for its turn."""
        self._over(peer)
        asker = self._askers.get(peer)
        if asker is not None:
            if asker.urgent or asker.pieces:
                self._queue(peer, asker, first=bool(asker.urgent))
            elif not asker.queued:
                del self._askers[peer]

    def look(self, taken: Mapping[str, int], now: float) -> None:
        """Note what each peer that is sent to has taken so far, in bytes.

        Leave out those that could not take any because this side holds back. Whoever took next to
        nothing for `LOOK` seconds no longer counts, until it takes more.
        """
        for peer in self._sending:
            count = taken.get(peer)
            if count is None:
                self._taken.pop(peer, None)
                self._idle.discard(peer)
                continue
            since, before = self._taken.setdefault(peer, (now, count))
            if now - since < LOOK:
                continue
            if count - before < TAKES * (now - since):
                self._idle.add(peer)
            else:
                self._idle.discard(peer)
            self._taken[peer] = now, count

    def sending(self) -> tuple[str, ...]:
        """The peers that a piece is under way to."""
        return tuple(self._sending)

    def _over(self, peer: str) -> None:
        self._sending.pop(peer, None)
        self._taken.pop(peer, None)
        self._idle.discard(peer)

    def waiting(self, peer: str) -> int:
        """Pieces that a peer has asked for and that are not under way."""
        asker = self._askers.get(peer)
        return len(asker.urgent) + len(asker.pieces) if asker else 0

    def load(self, peer: str) -> int:
        """Pieces that others than this peer wait for, those under way to them included."""
        return self._waiting - self.waiting(peer) + len(self._sending) - (peer in self._sending)

    def _queue(self, peer: str, asker: _Asker, *, first: bool) -> None:
        if asker.queued or peer in self._sending:
            return
        asker.queued = True
        if first:
            self._turns.appendleft(peer)
        else:
            self._turns.append(peer)

    def _full(self, now: float) -> bool:
        under_way = len(self._sending) - len(self._idle)
        if under_way < self._slots:
            return False
        if under_way >= self._most:
            return True
        quick = sum(
            now - since < self._slow and peer not in self._idle
            for peer, since in self._sending.items()
        )
        return quick >= self._slots


@dataclass(frozen=True, slots=True)
class Standing:
    """One accepted connection as the policy sees it. Times are of the caller's clock."""

    peer: str
    since: float
    last_wanted: float
    """When something was last asked for or sent, either way."""
    busy: bool
    """Whether pieces are due over it, either way."""


class LinkPolicy:
    """How many connections a host dials and accepts, and which one makes room.

    A host accepts more than it dials, over all blobs together: were the numbers equal, the first
    hosts would fill each other's places and the swarm would fall into islands that never reach a
    seed. So a blob may dial `max_dialed` peers while the host has dialed less than half of what it
    accepts. From then on a blob dials a few of its own, as the seeds of each may be others, up to
    three quarters; for the rest it shares connections that other blobs have.
    """

    def __init__(self, *, max_dialed: int, max_accepted: int) -> None:
        """Raises ValueError unless more are accepted than dialed."""
        if max_accepted <= max_dialed:
            raise ValueError(
                f"max_accepted ({max_accepted}) must be above max_dialed ({max_dialed}), "
                "or swarms fall into islands"
            )
        self.max_dialed = max_dialed
        self.max_accepted = max_accepted
        self.enough = max(max_dialed, max_accepted // 2)
        """Connections dialed, above which blobs share those that there are."""
        self.most = max(self.enough, max_accepted * 3 // 4)
        """Connections dialed at most."""
        self._rotated = float("-inf")

    def wanted(self, linked: int) -> int:
        """How many more of its peers a blob should have, given how many it has or is about to."""
        return max(0, self.max_dialed - linked)

    def to_dial(self, linked: int, shared: int, dialed: int) -> int:
        """How many of them to dial.

        `linked`: the blob's peers that are connected or being dialed. `shared`: others that take
        part in it. `dialed`: connections of this host, over all blobs, that it dialed.
        """
        few = min(FEW - linked - shared, self.most - dialed)
        return max(0, min(self.wanted(linked), max(self.enough - dialed, few)))

    def to_share(self, linked: int, shared: int) -> int:
        """How many connections of other blobs a blob shares that may not dial all that it wants."""
        return self.wanted(linked + shared)

    def has_room(self, accepted: int) -> bool:
        """Whether one more connection can be taken in as it is."""
        return accepted < self.max_accepted

    def spare(self, standings: Iterable[Standing], now: float) -> str | None:
        """The peer over whose connection nothing was wanted for the longest time, if any is idle.

        Of those dialed, one to close for another that is to be dialed.
        """
        idle = [it for it in standings if not it.busy and now - it.last_wanted > IDLE]
        return min(idle, key=lambda it: it.last_wanted).peer if idle else None

    def make_room(self, accepted: Iterable[Standing], now: float) -> str | None:
        """The peer whose connection to close for a newcomer; None when it is the newcomer's.

        First the one over which nothing was wanted for the longest time. When all are in use, once
        in `IDLE` seconds the oldest one makes room, if it had its place for `TENURE` seconds: who
        waits gets in in the end, and who must go has peers by then.
        """
        standings = list(accepted)
        idle = self.spare(standings, now)
        if idle is not None:
            return idle
        if now - self._rotated < IDLE or not standings:
            return None
        oldest = min(standings, key=lambda it: it.since)
        if now - oldest.since < TENURE:
            return None
        self._rotated = now
        return oldest.peer
