# SPDX-License-Identifier: Apache-2.0
"""What the tracker does. Knows nothing of HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest, DigestInvalid
from shoal.swarm.peers import PeerInfo
from shoal.tracker.addresses import dialable
from shoal.tracker.messages import (
    AnnounceAnswer,
    AnnouncedBlob,
    JoinAnswer,
    PeersAnswer,
)
from shoal.tracker.metainfos import Metainfos
from shoal.tracker.origins import OriginWatch
from shoal.tracker.swarms import Swarms
from shoal.web.deadline import Deadline


class Tracker:
    """Brings the peers of a blob together. A tracker that restarts is filled by announces."""

    def __init__(
        self,
        swarms: Swarms,
        metainfos: Metainfos,
        origins: OriginWatch,
        *,
        announce_interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._swarms = swarms
        self._metainfos = metainfos
        self._origins = origins
        self._announce_interval = announce_interval
        self._clock = clock

    async def join(
        self, digest_text: str, peer: PeerInfo, *, complete: bool, deadline: Deadline
    ) -> JoinAnswer:
        """Metainfo and peers in one answer; from now on the peer is handed out to others.

        Raises `DigestInvalid`, `BadRequest` (an address that nobody could dial), `BlobUnknown` (all
        origins were asked), `Unavailable` (they could not be asked).
        """
        digest = _digest(digest_text)
        _check(peer)
        elsewhere = self._swarms.has_others(digest_text, peer.id, self._clock())
        entry = await self._metainfos.get(digest, deadline=deadline, elsewhere=elsewhere)
        peers = self._swarms.announce(
            peer,
            digest_text,
            complete=complete,
            origins=self._origins.alive(entry.origins),
            now=self._clock(),
        )
        return JoinAnswer(msgspec.Raw(entry.encoded), peers, self._announce_interval)

    def announce(self, peer: PeerInfo, blobs: Sequence[AnnouncedBlob]) -> AnnounceAnswer:
        """The peer still has or fetches these blobs; peers for those that it fetches.

        Never waits for the origins: those of a blob that is not known yet come with the next
        answer.
        """
        _check(peer)
        digests = [_digest(blob.digest) for blob in blobs]
        now = self._clock()
        peers: dict[str, list[PeerInfo]] = {}
        for blob, digest in zip(blobs, digests, strict=True):
            origins: Sequence[PeerInfo] = ()
            if not blob.complete:
                entry = self._metainfos.prepare(digest)
                origins = self._origins.alive(entry.origins) if entry else ()
            found = self._swarms.announce(
                peer, blob.digest, complete=blob.complete, origins=origins, now=now
            )
            if not blob.complete:
                peers[blob.digest] = found
        return AnnounceAnswer(self._announce_interval, peers)

    def leave(self, peer_id: str, digests: Iterable[str] | None) -> None:
        """The peer gives up these blobs, or all of them."""
        self._swarms.leave(peer_id, digests)

    async def metainfo(self, digest_text: str, *, deadline: Deadline) -> bytes:
        """The encoded metainfo; raises as `join`."""
        digest = _digest(digest_text)
        elsewhere = self._swarms.has_others(digest_text, "", self._clock())
        entry = await self._metainfos.get(digest, deadline=deadline, elsewhere=elsewhere)
        return entry.encoded

    def peers(self, digest_text: str) -> PeersAnswer:
        """Who has or fetches the blob, as far as is known."""
        entry = self._metainfos.peek(_digest(digest_text))
        swarm = self._swarms.peers(digest_text, self._clock())
        origins = self._origins.alive(entry.origins) if entry else []
        return PeersAnswer(digest_text, origins, swarm.seeds, swarm.leechers)

    async def readiness(self) -> list[str]:
        """What keeps the tracker from answering joins; nothing when all is well."""
        if not self._origins.reachable():
            await self._origins.ask()
        if self._origins.reachable():
            return []
        return [f"origin {host}: {why}" for host, why in self._origins.silent().items()]


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise DigestInvalid(str(error)) from error


def _check(peer: PeerInfo) -> None:
    if not dialable(peer.host):
        raise BadRequest(
            f"peer {peer.id} announces the host {peer.host!r}, which is neither an IP address of "
            "one host nor a DNS name: set peer.advertise to what other hosts can dial"
        )
