# SPDX-License-Identifier: Apache-2.0
"""Who has what: the peers of each blob, as long as they are heard of. Pure; given the time.

Every operation takes constant time but for the order of expiry, which costs the logarithm of the
number of memberships; hand-outs from swarms of many thousand peers included. Times are seconds of
one monotonic clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from shoal.swarm.peers import PeerInfo
from shoal.tracker.handout import Handout, Roster


@dataclass(slots=True, eq=False)
class _Membership:
    heard: float
    complete: bool
    number: int
    """Of its entry in the order of expiry."""


@dataclass(slots=True, eq=False)
class _Peer:
    info: PeerInfo
    heard: float
    digests: dict[str, _Membership] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SwarmPeers:
    """Everyone in a swarm, for people to look at."""

    seeds: list[PeerInfo]
    leechers: list[PeerInfo]


class Swarms:
    """The swarms of one tracker.

    A peer id stands for one process and an address (host and port) for one peer: who announces a
    known id takes the place of what was known of it, and so does who announces a known address.
    """

    def __init__(self, *, peer_ttl: float, handout: int, rng: random.Random | None = None) -> None:
        self._peer_ttl = peer_ttl
        self._handout = handout
        self._rng = rng or random.Random()
        self._swarms: dict[str, Roster] = {}
        self._peers: dict[str, _Peer] = {}
        self._addresses: dict[tuple[str, int], _Peer] = {}
        # One entry for each membership, at a time when it may have expired: those that were heard
        # of since are put in again.
        self._expiry: list[tuple[float, int, _Peer, str]] = []
        self._numbers = count()
        self._memberships = 0

    def announce(
        self,
        peer: PeerInfo,
        digest: str,
        *,
        complete: bool,
        origins: Sequence[PeerInfo] = (),
        starved: bool = False,
        now: float,
    ) -> Handout:
        """Note that the peer has the blob, or is fetching it; who it may fetch it from.

        `origins` are the origins known to have the blob; `starved` says that nothing comes from
        those that the peer was told of before. A complete peer is told of nobody: it waits for
        others to dial it.
        """
        self.expire(now)
        swarm = self._note(peer, digest, complete, now)
        if complete:
            return Handout([], None)
        return swarm.hand_out(
            peer, origins=origins, limit=self._handout, rng=self._rng, starved=starved
        )

    def restore(
        self, peer: PeerInfo, digest: str, *, complete: bool, heard: float, now: float
    ) -> None:
        """Note what another tracker heard at the time `heard`, unless more is known here."""
        if heard + self._peer_ttl <= now:
            return
        known = self._peers.get(peer.id)
        if known is not None:
            before = known.digests.get(digest)
            if before is not None and before.heard >= heard:
                return
            if known.heard >= heard:
                peer = known.info
        holder = self._addresses.get((peer.host, peer.port))
        if holder is None or holder is known or holder.heard < heard:
            self._note(peer, digest, complete, heard)

    def leave(self, peer_id: str, digests: Iterable[str] | None = None) -> list[str]:
        """The peer gives up these blobs, or all of them; those that it was known to have."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return []
        given_up = list(peer.digests if digests is None else digests)
        return [digest for digest in given_up if self._drop(peer, digest)]

    def left(self, peer_id: str, digest: str | None, heard: float) -> None:
        """Another tracker heard at the time `heard` that the peer gave up a blob, or all (None)."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        for each in list(peer.digests) if digest is None else [digest]:
            if each in peer.digests and peer.digests[each].heard < heard:
                self._drop(peer, each)

    def expire(self, now: float) -> None:
        """Forget who was not heard of for the time to live."""
        while self._expiry and self._expiry[0][0] <= now:
            _, number, peer, digest = heappop(self._expiry)
            membership = peer.digests.get(digest)
            if membership is None or membership.number != number:
                continue
            at = membership.heard + self._peer_ttl
            if at > now:
                heappush(self._expiry, (at, number, peer, digest))
            else:
                self._drop(peer, digest)

    def peers(self, digest: str, now: float) -> SwarmPeers:
        """Everyone in the swarm of a blob."""
        self.expire(now)
        swarm = self._swarms.get(digest)
        return SwarmPeers([], []) if swarm is None else SwarmPeers(*swarm.peers())

    def has_others(self, digest: str, peer_id: str, now: float) -> bool:
        """Whether the blob might be had from an agent that is not this peer."""
        self.expire(now)
        swarm = self._swarms.get(digest)
        if swarm is None:
            return False
        own = self._peers.get(peer_id)
        return len(swarm) > (own is not None and digest in own.digests)

    @property
    def swarm_count(self) -> int:
        """Blobs that somebody has or fetches."""
        return len(self._swarms)

    @property
    def peer_count(self) -> int:
        """Peers that were heard of."""
        return len(self._peers)

    @property
    def membership_count(self) -> int:
        """Pairs of a peer and a blob."""
        return self._memberships

    def _note(self, info: PeerInfo, digest: str, complete: bool, heard: float) -> Roster:
        peer = self._known(info, heard)
        swarm = self._swarms.get(digest)
        if swarm is None:
            swarm = self._swarms[digest] = Roster()
        membership = peer.digests.get(digest)
        if membership is None or membership.complete != complete:
            swarm.put(peer.info, complete=complete)
        elif not complete:
            swarm.keep(peer.info)
        if membership is None:
            self._memberships += 1
            number = next(self._numbers)
            heappush(self._expiry, (heard + self._peer_ttl, number, peer, digest))
            peer.digests[digest] = _Membership(heard, complete, number)
        else:
            membership.heard, membership.complete = heard, complete
        return swarm

    def _known(self, info: PeerInfo, heard: float) -> _Peer:
        peer = self._peers.get(info.id)
        if peer is not None and peer.info == info:
            peer.heard = max(peer.heard, heard)
            return peer
        address = (info.host, info.port)
        before = self._addresses.get(address)
        if before is not None and before is not peer:
            self.leave(before.info.id)
        if peer is None:
            peer = self._peers[info.id] = _Peer(info, heard)
        else:
            self._addresses.pop((peer.info.host, peer.info.port), None)
            for digest, membership in peer.digests.items():
                swarm = self._swarms[digest]
                swarm.remove(peer.info)
                swarm.put(info, complete=membership.complete)
            peer.info, peer.heard = info, max(peer.heard, heard)
        self._addresses[address] = peer
        return peer

    def _drop(self, peer: _Peer, digest: str) -> bool:
        """Forget a membership; whether there was one. Its entry in `_expiry` is skipped later."""
        if peer.digests.pop(digest, None) is None:
            return False
        self._memberships -= 1
        swarm = self._swarms[digest]
        swarm.remove(peer.info)
        if not swarm:
            del self._swarms[digest]
        if not peer.digests:
            del self._peers[peer.info.id]
            self._addresses.pop((peer.info.host, peer.info.port), None)
        return True
