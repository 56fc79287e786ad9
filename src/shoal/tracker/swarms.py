# SPDX-License-Identifier: Apache-2.0
"""Who has what: the peers of each blob, as long as they are heard of. Pure; given the time.

Every operation takes constant time, hand-outs from swarms of many thousand peers included. Times
are seconds of one monotonic clock.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shoal.swarm.peers import PeerInfo
from shoal.tracker.handout import choose


class _Pool:
    """A set of peers from which some are drawn at random, in time independent of its size."""

    __slots__ = ("_peers", "_slots")

    def __init__(self) -> None:
        self._peers: list[_Peer] = []
        self._slots: dict[_Peer, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, peer: _Peer) -> None:
        if peer not in self._slots:
            self._slots[peer] = len(self._peers)
            self._peers.append(peer)

    def discard(self, peer: _Peer) -> None:
        slot = self._slots.pop(peer, None)
        if slot is None:
            return
        last = self._peers.pop()
        if last is not peer:
            self._peers[slot] = last
            self._slots[last] = slot

    def draw(self, count: int, rng: random.Random) -> list[PeerInfo]:
        return [peer.info for peer in rng.sample(self._peers, min(count, len(self._peers)))]

    def infos(self) -> list[PeerInfo]:
        return [peer.info for peer in self._peers]


class _Swarm:
    """The peers of one blob."""

    __slots__ = ("leechers", "seeds")

    def __init__(self) -> None:
        self.seeds = _Pool()
        self.leechers = _Pool()

    def put(self, peer: _Peer, *, complete: bool) -> None:
        (self.leechers if complete else self.seeds).discard(peer)
        (self.seeds if complete else self.leechers).add(peer)

    def remove(self, peer: _Peer) -> None:
        self.seeds.discard(peer)
        self.leechers.discard(peer)

    def __bool__(self) -> bool:
        return bool(self.seeds or self.leechers)


@dataclass(slots=True, eq=False)
class _Peer:
    info: PeerInfo
    digests: set[str] = field(default_factory=set)


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
        self._swarms: dict[str, _Swarm] = {}
        self._peers: dict[str, _Peer] = {}
        self._addresses: dict[tuple[str, int], _Peer] = {}
        # All have the same time to live, so the order of announces is the order of expiry.
        self._expiry: OrderedDict[tuple[_Peer, str], float] = OrderedDict()

    def announce(
        self,
        peer: PeerInfo,
        digest: str,
        *,
        complete: bool,
        origins: Sequence[PeerInfo] = (),
        now: float,
    ) -> list[PeerInfo]:
        """Note that the peer has the blob, or is fetching it; who it may fetch it from.

        `origins` are the origins known to have the blob. A complete peer is told of nobody: it
        waits for others to dial it.
        """
        self.expire(now)
        known = self._known(peer)
        swarm = self._swarms.get(digest)
        if swarm is None:
            swarm = self._swarms[digest] = _Swarm()
        swarm.put(known, complete=complete)
        known.digests.add(digest)
        self._expiry[known, digest] = now + self._peer_ttl
        self._expiry.move_to_end((known, digest))
        if complete:
            return []
        enough = self._handout + 1  # one of them may be the peer itself
        return choose(
            peer.id,
            origins=self._rng.sample(origins, len(origins)),
            seeds=swarm.seeds.draw(enough, self._rng),
            leechers=swarm.leechers.draw(enough, self._rng),
            limit=self._handout,
        )

    def leave(self, peer_id: str, digests: Iterable[str] | None = None) -> None:
        """The peer gives up these blobs, or all of them."""
        peer = self._peers.get(peer_id)
        if peer is not None:
            for digest in list(peer.digests if digests is None else digests):
                self._drop(peer, digest)

    def expire(self, now: float) -> None:
        """Forget who was not heard of for the time to live."""
        while self._expiry:
            (peer, digest), at = next(iter(self._expiry.items()))
            if at > now:
                return
            self._drop(peer, digest)

    def peers(self, digest: str, now: float) -> SwarmPeers:
        """Everyone in the swarm of a blob."""
        self.expire(now)
        swarm = self._swarms.get(digest) or _Swarm()
        return SwarmPeers(swarm.seeds.infos(), swarm.leechers.infos())

    def has_others(self, digest: str, peer_id: str, now: float) -> bool:
        """Whether the blob might be had from an agent that is not this peer."""
        self.expire(now)
        swarm = self._swarms.get(digest)
        if swarm is None:
            return False
        own = self._peers.get(peer_id)
        return len(swarm.seeds) + len(swarm.leechers) > (own is not None and digest in own.digests)

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
        return len(self._expiry)

    def _known(self, info: PeerInfo) -> _Peer:
        peer = self._peers.get(info.id)
        if peer is not None and peer.info == info:
            return peer
        address = (info.host, info.port)
        before = self._addresses.get(address)
        if before is not None and before is not peer:
            self.leave(before.info.id)
        if peer is None:
            peer = self._peers[info.id] = _Peer(info)
        else:
            self._addresses.pop((peer.info.host, peer.info.port), None)
            peer.info = info
        self._addresses[address] = peer
        return peer

    def _drop(self, peer: _Peer, digest: str) -> None:
        if digest not in peer.digests:
            return
        peer.digests.discard(digest)
        del self._expiry[peer, digest]
        swarm = self._swarms[digest]
        swarm.remove(peer)
        if not swarm:
            del self._swarms[digest]
        if not peer.digests:
            del self._peers[peer.info.id]
            self._addresses.pop((peer.info.host, peer.info.port), None)
