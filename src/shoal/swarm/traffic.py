# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes of pieces that go between peers."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import Counter

from shoal.swarm.drops import Drop
from shoal.swarm.peers import PeerInfo

_RECEIVED = Counter(
    "shoal_swarm_received_bytes", "Bytes of pieces received, by who sent them", ["source"]
)
_SENT = Counter("shoal_swarm_sent_bytes", "Bytes of pieces sent, by who gets them", ["to"])
_WRONG = Counter("shoal_swarm_wrong_pieces", "Pieces received whose bytes were not right")
_STALLED = Counter("shoal_swarm_stalls", "Times that a peer sent nothing of what was due")
_DROPPED = Counter(
    "shoal_swarm_dropped_peers",
    "Peers whose connection was ended: protocol (a breach), flood (asks for ever), wrong_piece, "
    "stalled (sends nothing), trickle (next to nothing), unread (takes nothing), handshake (no "
    "hello in time), channels (the connection's numbers are used up)",
    ["why"],
)

Refusal = Literal["full", "tls", "identity", "kept_away"]

_REFUSED = Counter(
    "shoal_swarm_refused_peers",
    "Peers turned away: full, no TLS or a wrong certificate (tls), not who it says (identity), did "
    "harm before (kept_away)",
    ["why"],
)


class Traffic:
    """The counters of one process."""

    def __init__(self) -> None:
        self._received = {origin: _RECEIVED.labels(_kind(origin)) for origin in (False, True)}
        self._sent = {origin: _SENT.labels(_kind(origin)) for origin in (False, True)}
        self.wrong_pieces = _WRONG
        self.stalls = _STALLED
        self._dropped = {why: _DROPPED.labels(why) for why in Drop}
        self._refused = {why: _REFUSED.labels(why) for why in get_args(Refusal)}

    def dropped(self, why: Drop) -> None:
        """A peer's connection was ended."""
        self._dropped[why].inc()

    def refused(self, why: Refusal) -> None:
        """A peer was turned away."""
        self._refused[why].inc()

    def received(self, peer: PeerInfo | None, count: int) -> None:
        """Payload bytes came from a peer."""
        self._received[peer is not None and peer.origin].inc(count)

    def sent(self, peer: PeerInfo | None, count: int) -> None:
        """Payload bytes were sent to a peer."""
        self._sent[peer is not None and peer.origin].inc(count)


def _kind(origin: bool) -> str:
    return "origin" if origin else "agent"
