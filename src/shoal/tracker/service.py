# SPDX-License-Identifier: Apache-2.0
"""What the tracker does. Knows nothing of HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest, DigestInvalid
from shoal.swarm.peers import PeerInfo
from shoal.tracker.addresses import dialable
from shoal.tracker.messages import (
    AnnounceAnswer,
    AnnouncedBlob,
    InstanceAnswer,
    JoinAnswer,
    PeersAnswer,
    Share,
)
from shoal.tracker.metainfos import Metainfos
from shoal.tracker.origins import OriginWatch
from shoal.tracker.store import Presence, SwarmStore
from shoal.web.deadline import Deadline


class Tracker:
    """Brings the peers of a blob together. A tracker that restarts is filled by announces."""

    def __init__(
        self,
        store: SwarmStore,
        metainfos: Metainfos,
        origins: OriginWatch,
        *,
        announce_interval: float,
    ) -> None:
        self._store = store
        self._metainfos = metainfos
        self._origins = origins
        self._announce_interval = announce_interval
        self._instance = InstanceAnswer(secrets.token_hex(8))

    async def join(
        self,
        digest_text: str,
        peer: PeerInfo,
        *,
        complete: bool,
        starved: bool = False,
        namespace: str = "",
        deadline: Deadline,
    ) -> JoinAnswer:
        """Metainfo and peers in one answer; from now on the peer is handed out to others.

        `namespace` is the repository whose backend is asked for what no origin has. Raises
        `DigestInvalid`, `BadRequest` (an address that nobody could dial), `BlobUnknown` (all were
        asked), `StillFetching`, `Unavailable` (they could not be asked).
        """
        digest = _digest(digest_text)
        _check(peer)
        entry = self._metainfos.peek(digest)
        if entry is None or not entry.origins:
            # Only then it matters whether a peer has it, which may take a question to Redis.
            elsewhere = await self._store.has_others(digest_text, peer.id)
            entry = await self._metainfos.get(
                digest, deadline=deadline, namespace=namespace, elsewhere=elsewhere
            )
        origins = self._origins.alive(entry.origins)
        [told] = await self._store.announce(
            peer, [Presence(digest_text, complete, starved, origins)]
        )
        return JoinAnswer(
            msgspec.Raw(entry.encoded), told.peers, self._announce_interval, told.share
        )

    async def announce(self, peer: PeerInfo, blobs: Sequence[AnnouncedBlob]) -> AnnounceAnswer:
        """The peer still has or fetches these blobs; peers for those that it fetches.

        Never waits for the origins: those of a blob that is not known yet come with the next
        answer.
        """
        _check(peer)
        digests = [_digest(blob.digest) for blob in blobs]
        said: list[Presence] = []
        for blob, digest in zip(blobs, digests, strict=True):
            origins: Sequence[PeerInfo] = ()
            if not blob.complete:
                entry = self._metainfos.prepare(digest)
                origins = self._origins.alive(entry.origins) if entry else ()
            elif blob.small:
                self._metainfos.learn(digest)
            said.append(Presence(blob.digest, blob.complete, blob.starved, origins))
        peers: dict[str, list[PeerInfo]] = {}
        shares: dict[str, Share] = {}
        for blob, told in zip(blobs, await self._store.announce(peer, said), strict=True):
            if not blob.complete:
                peers[blob.digest] = told.peers
            if told.share is not None:
                shares[blob.digest] = told.share
        return AnnounceAnswer(self._announce_interval, peers, shares)

    async def leave(self, peer_id: str, digests: Iterable[str] | None) -> None:
        """The peer gives up these blobs, or all of them; raises `DigestInvalid`."""
        if digests is not None:
            digests = [str(_digest(digest)) for digest in digests]
        await self._store.leave(peer_id, digests)

    def instance(self) -> InstanceAnswer:
        """Which process this is."""
        return self._instance

    async def metainfo(
        self, digest_text: str, *, deadline: Deadline, namespace: str = "", known: int = 0
    ) -> bytes:
        """The encoded metainfo; raises as `join`.

        Of a blob that an origin still fetches when more than `known` pieces are, or after a while.
        """
        digest = _digest(digest_text)
        elsewhere = await self._store.has_others(digest_text, "")
        entry = await self._metainfos.more(
            digest, known=known, deadline=deadline, namespace=namespace, elsewhere=elsewhere
        )
        return entry.encoded

    async def peers(self, digest_text: str) -> PeersAnswer:
        """Who has or fetches the blob, as far as is known."""
        entry = self._metainfos.peek(_digest(digest_text))
        swarm = await self._store.peers(digest_text)
        origins = self._origins.alive(entry.origins) if entry else []
        return PeersAnswer(digest_text, origins, swarm.seeds, swarm.leechers)

    async def readiness(self) -> list[str]:
        """What keeps the tracker from answering joins; nothing when all is well."""
        if not self._origins.reachable():
            await self._origins.ask()
        missing = self._store.missing()
        if not self._origins.reachable():
            silent = self._origins.silent().items()
            missing += [f"origin {host}: {why}" for host, why in silent]
        return missing


@lru_cache(maxsize=4096)
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
