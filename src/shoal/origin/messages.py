# SPDX-License-Identifier: Apache-2.0
"""JSON bodies of the origin's HTTP API, as server and client both read them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shoal.swarm.metainfo import Metainfo
from shoal.swarm.peers import PeerInfo

MAX_NAMESPACES = 100
"""Repositories that are named with one copy of a blob."""

MAX_STAT_DIGESTS = 1000
"""Digests in one stat request."""


MAX_LISTED = 1_000
"""Blobs that a `SweepReport` names; its totals count all of them."""


class StatRequest(msgspec.Struct):
    """Asks which of these digests are here."""

    digests: Annotated[list[str], msgspec.Meta(max_length=MAX_STAT_DIGESTS)]

    keep: bool = False
    """The one who asks relies on those that are here: their grace time begins anew."""

    kept: bool = False
    """Garbage collection leaves those that are here alone for good."""

    namespaces: Annotated[list[str], msgspec.Meta(max_length=MAX_NAMESPACES)] = []
    """With `keep`: repositories to whose backends those that are here are written."""

    backed: Annotated[list[str], msgspec.Meta(max_length=MAX_NAMESPACES)] = []
    """Repositories whose backends have the blobs, as the one who asks knows."""

    unbacked: bool = False
    """Other repositories that have no backend have them, too: they are not evicted."""


class StatAnswer(msgspec.Struct):
    """Sizes in bytes of those that are here; the others are not."""

    present: dict[str, int]


class OwedRequest(msgspec.Struct):
    """Asks of blobs whether they are still to be written to a backend by this host."""

    asked: Annotated[list[tuple[str, str]], msgspec.Meta(max_length=MAX_STAT_DIGESTS)]
    """Repository and digest of each."""


class Owing(msgspec.Struct, frozen=True):
    """That a host is still to write a blob to a backend, and has not given it up."""

    running: bool
    """It is at it."""

    failures: int
    """How often it tried in vain."""


class OwedAnswer(msgspec.Struct):
    """In the order of the questions; None: this host does not owe it."""

    owing: list[Owing | None]


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


class SizeAnswer(msgspec.Struct):
    """A blob's size in bytes."""

    size: int


class PrefetchAnswer(msgspec.Struct, frozen=True):
    """A blob that is to be ready on the origins."""

    size: int
    """Bytes."""

    ready: bool
    """An origin has it; False: it is being fetched, or is next."""


class LocationsAnswer(msgspec.Struct):
    """The owners of a digest in ring order."""

    owners: list[str]


class SweepRequest(msgspec.Struct):
    """What a sweep is told; the body may be left out."""

    released: list[str] = []
    """Of a dry run: digests that the build-indexes still have a record of, and would not have if
    their own run were none."""


class Swept(msgspec.Struct, frozen=True):
    """One blob that a sweep removed, or would remove."""

    digest: str
    size: int
    why: str


class SweepReport(msgspec.Struct, frozen=True):
    """What one sweep of an origin looked at and removed (or, as a dry run, would remove)."""

    origin: str
    dry_run: bool
    examined: int
    """Blobs on this origin's disk."""

    young: int
    """Of those: left alone as they were used within the grace time."""

    kept: int
    """Marked to stay for good (pushed through the generic API)."""

    in_use: int
    """Being received or replicated, or still to be written to a backend."""

    wanted: int
    """Old, and belonging to a repository."""

    relied_on: int
    """Unwanted, and then somebody relied on them before they were removed."""

    removed: int
    freed: int
    """Bytes of the blobs removed; those of a dry run would be."""

    items: list[Swept]
    """The first of those removed, at most `MAX_LISTED`; `removed` and `freed` count all."""

    stopped: str = ""
    """Why the sweep ended before it had seen all; empty when it has."""
