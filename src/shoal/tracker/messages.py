# SPDX-License-Identifier: Apache-2.0
"""JSON bodies of the tracker's HTTP API, as server and client both read them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shoal.swarm.metainfo import Metainfo
from shoal.swarm.peers import PeerInfo

MAX_ANNOUNCED = 10_000
"""Blobs in one announce."""

_DigestText = Annotated[str, msgspec.Meta(max_length=160)]


Share = tuple[int, int]
"""Of a relay: its place among the relays of its zone, and the number of places. It fetches from
other zones the pieces whose number leaves `place` when divided by that number."""


class JoinRequest(msgspec.Struct, frozen=True):
    """A peer wants a blob, or (complete) has it."""

    digest: _DigestText
    peer: PeerInfo
    namespace: Annotated[str, msgspec.Meta(max_length=255)] = ""
    complete: bool = False
    starved: bool = False
    """Nothing comes from the peers that it was told of before."""


class JoinAnswer(msgspec.Struct, frozen=True):
    """The answer to a join as the tracker writes it: the metainfo is in its encoded form."""

    metainfo: msgspec.Raw
    peers: list[PeerInfo]
    interval_s: float
    share: Share | None = None


class Joined(msgspec.Struct, frozen=True):
    """The answer to a join as the peer reads it."""

    metainfo: Metainfo
    peers: list[PeerInfo]
    interval_s: float
    """Seconds after which the peer announces itself."""

    share: Share | None = None


class MetainfoAnswer(msgspec.Struct, frozen=True):
    """A metainfo without joining, as the tracker writes it."""

    metainfo: msgspec.Raw


class MetainfoRead(msgspec.Struct, frozen=True):
    """A metainfo without joining, as the caller reads it."""

    metainfo: Metainfo


class AnnouncedBlob(msgspec.Struct, frozen=True, omit_defaults=True):
    """One blob of a peer."""

    digest: _DigestText
    complete: bool = False
    starved: bool = False
    small: bool = False
    """It came in one request, so that the tracker may not have heard of it."""


class AnnounceRequest(msgspec.Struct, frozen=True):
    """All blobs of a peer, or some of them: it still has or fetches them."""

    peer: PeerInfo
    blobs: Annotated[list[AnnouncedBlob], msgspec.Meta(max_length=MAX_ANNOUNCED)]


class AnnounceAnswer(msgspec.Struct, frozen=True):
    """Peers for each blob that is not complete."""

    interval_s: float
    peers: dict[str, list[PeerInfo]]
    shares: dict[str, Share] = {}
    """For the blobs that the peer brings into its zone: its share of the pieces."""


class LeaveRequest(msgspec.Struct, frozen=True):
    """A peer gives up these blobs, or all of them (null)."""

    peer_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    digests: Annotated[list[_DigestText], msgspec.Meta(max_length=MAX_ANNOUNCED)] | None = None


class PeersAnswer(msgspec.Struct, frozen=True):
    """Everyone who has or fetches a blob, as far as the tracker knows."""

    digest: str
    origins: list[PeerInfo]
    seeds: list[PeerInfo]
    leechers: list[PeerInfo]


class InstanceAnswer(msgspec.Struct, frozen=True):
    """Which process answers."""

    instance: str
    """Another one at each start; a tracker that started anew has to be told who is there."""
