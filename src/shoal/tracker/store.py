# SPDX-License-Identifier: Apache-2.0
"""Where a tracker keeps its swarms: the interface, and the store in its own memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from shoal.swarm.peers import PeerInfo
from shoal.tracker.handout import Handout
from shoal.tracker.swarms import SwarmPeers, Swarms


class Presence(NamedTuple):
    """What a peer says of one blob."""

    digest: str
    complete: bool
    starved: bool = False
    origins: Sequence[PeerInfo] = ()
    """The origins that are known to have the blob."""


class SwarmStore(Protocol):
    """Who has what. No method raises because the store is down, and none waits long for it."""

    swarms: Swarms
    """What this process knows."""

    async def start(self) -> None:
        """Begin to work."""

    async def stop(self) -> None:
        """End, having written what was heard."""

    async def announce(self, peer: PeerInfo, blobs: Sequence[Presence]) -> list[Handout]:
        """Note what a peer has and fetches; for each blob, whom it may fetch it from."""

    async def leave(self, peer_id: str, digests: Iterable[str] | None) -> None:
        """The peer gives up these blobs, or all of them (None)."""

    async def peers(self, digest: str) -> SwarmPeers:
        """Everyone in the swarm of a blob."""

    async def has_others(self, digest: str, peer_id: str) -> bool:
        """Whether the blob might be had from an agent that is not this peer."""

    def missing(self) -> list[str]:
        """What keeps the store from its work; nothing when all is well."""


class MemoryStore:
    """Swarms that end with the process."""

    def __init__(self, swarms: Swarms, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.swarms = swarms
        self._clock = clock

    async def start(self) -> None:
        """Nothing is to be done."""

    async def stop(self) -> None:
        """Nothing is to be done."""

    async def announce(self, peer: PeerInfo, blobs: Sequence[Presence]) -> list[Handout]:
        """See `SwarmStore`."""
        now = self._clock()
        return [note(self.swarms, peer, blob, now) for blob in blobs]

    async def leave(self, peer_id: str, digests: Iterable[str] | None) -> None:
        """See `SwarmStore`."""
        self.swarms.leave(peer_id, digests)

    async def peers(self, digest: str) -> SwarmPeers:
        """See `SwarmStore`."""
        return self.swarms.peers(digest, self._clock())

    async def has_others(self, digest: str, peer_id: str) -> bool:
        """See `SwarmStore`."""
        return self.swarms.has_others(digest, peer_id, self._clock())

    def missing(self) -> list[str]:
        """Memory is always there."""
        return []


def note(swarms: Swarms, peer: PeerInfo, blob: Presence, now: float) -> Handout:
    """Note what a peer says of one blob."""
    return swarms.announce(
        peer,
        blob.digest,
        complete=blob.complete,
        origins=blob.origins,
        starved=blob.starved,
        now=now,
    )
