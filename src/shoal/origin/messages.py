# SPDX-License-Identifier: Apache-2.0
"""JSON bodies of the origin's HTTP API, as server and client both read them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shoal.swarm.metainfo import Metainfo
from shoal.swarm.peers import PeerInfo

MAX_STAT_DIGESTS = 1000
"""Digests in one stat request."""


class StatRequest(msgspec.Struct):
    """Asks which of these digests are here."""

    digests: Annotated[list[str], msgspec.Meta(max_length=MAX_STAT_DIGESTS)]


class StatAnswer(msgspec.Struct):
    """Sizes in bytes of those that are here; the others are not."""

    present: dict[str, int]


class MetainfoAnswer(msgspec.Struct):
    """A blob's pieces, and the peer endpoint that has them all."""

    metainfo: Metainfo
    peer: PeerInfo


class ReplicateRequest(msgspec.Struct):
    """Copy the blob to these origins (``host:port``)."""

    to: Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)]


class ReplicateAnswer(msgspec.Struct):
    """Hosts that now have the blob, and for the others why not."""

    copied: list[str]
    failed: dict[str, str]


class LocationsAnswer(msgspec.Struct):
    """The owners of a digest in ring order."""

    owners: list[str]
