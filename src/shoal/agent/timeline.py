# SPDX-License-Identifier: Apache-2.0
"""Where the time of each pull went, as this agent saw it. Pure: the clock is a parameter.

The last downloads and manifests are remembered, some kilobytes each at most; the rest is forgotten
with the process. All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cachetools import FIFOCache, LRUCache

from shoal.model.digest import Digest
from shoal.model.manifest import Manifest
from shoal.swarm.peers import PeerInfo

MAX_BLOBS = 256
MAX_MANIFESTS = 64

MAX_SOURCES = 64
"""Peers that are named per download; those that come later are counted together."""

STALL = 0.5
"""Seconds without any piece that count as a stall of the whole download."""

HTTP = "origins over HTTP"
OTHERS = "other peers"


class Kind(StrEnum):
    """What a source of bytes is."""

    AGENT = "agent"
    ORIGIN = "origin"
    HTTP = "http"


@dataclass(slots=True)
class Source:
    """What came from one peer."""

    kind: Kind
    bytes: int = 0
    pieces: int = 0
    waited: float = 0.0
    """Seconds in which nothing came, until a piece came from here."""

    stalls: int = 0
    """Times that it sent nothing of what was due."""


@dataclass(slots=True)
class Stalls:
    """Gaps of more than `STALL` between two pieces, whoever sent them."""

    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0


class DownloadTimeline:
    """One download of one blob: what happened when, and who gave what.

    From the answer of the tracker to the last piece, every second is put down to the source of the
    piece with which it ended, so that the seconds of all sources add up to that time.
    """

    def __init__(self, digest: Digest, began: float) -> None:
        self.digest = digest
        self.began = began
        self.size: int | None = None
        self.located: float | None = None
        """When it was known which pieces the blob has, and who has them."""

        self.located_by = ""
        """``tracker``, or ``origins`` when no tracker answered."""

        self.peers_offered = 0
        self.first_piece: float | None = None
        self.last_piece: float | None = None
        self.resumed = 0
        """Bytes that were on the disk already, from an earlier try."""

        self.hashed: float | None = None
        """When the digest of the whole was known."""

        self.hashing = 0.0
        """Seconds that a thread spent on it; most of them while pieces still came."""

        self.ended: float | None = None
        self.error = ""
        self.sources: dict[str, Source] = {}
        self.stalls = Stalls()

    def locate(self, now: float, *, size: int, by: str, peers: int) -> None:
        """The metainfo and the first peers are known."""
        self.located, self.size, self.located_by, self.peers_offered = now, size, by, peers

    def received(self, peer: PeerInfo, count: int, now: float) -> None:
        """A piece came from a peer, and was right."""
        self._took(self._peer(peer), count, now)

    def received_over_http(self, count: int, now: float) -> None:
        """A piece came from an origin over HTTP, and was right."""
        self._took(self.sources.setdefault(HTTP, Source(Kind.HTTP)), count, now)

    def stalled(self, peer: PeerInfo) -> None:
        """A peer sent nothing of what was due."""
        self._peer(peer).stalls += 1

    def hash_done(self, now: float) -> None:
        """The digest of the whole is known."""
        self.hashed = now

    def end(self, now: float, error: str = "") -> None:
        """It is cached, or failed."""
        self.ended, self.error = now, error

    @property
    def bytes(self) -> int:
        """What came from all sources."""
        return sum(source.bytes for source in self.sources.values())

    def _peer(self, peer: PeerInfo) -> Source:
        name = peer.address
        source = self.sources.get(name)
        if source is None:
            kind = Kind.ORIGIN if peer.origin else Kind.AGENT
            if len(self.sources) >= MAX_SOURCES:
                name = f"{OTHERS} ({kind})"
            source = self.sources.setdefault(name, Source(kind))
        return source

    def _took(self, source: Source, count: int, now: float) -> None:
        since = self.located if self.last_piece is None else self.last_piece
        gap = max(0.0, now - (self.began if since is None else since))
        source.bytes += count
        source.pieces += 1
        source.waited += gap
        if gap > STALL:
            self.stalls.count += 1
            self.stalls.seconds += gap
            self.stalls.longest = max(self.stalls.longest, gap)
        if self.first_piece is None:
            self.first_piece = now
        self.last_piece = now


@dataclass(slots=True)
class Reading:
    """The last time that a client read a blob."""

    began: float
    first_byte: float | None = None
    waited: float = 0.0
    """Seconds in which the client could have been sent more, had it been here."""

    sent: int = 0
    """Bytes handed to the client."""

    last_byte: float | None = None

    def got(self, began: float, now: float) -> None:
        """The reader asked for more at `began` and got it now."""
        self.waited += max(0.0, now - began)
        if self.first_byte is None:
            self.first_byte = now

    def sent_until(self, count: int, now: float) -> None:
        """The client has taken more bytes."""
        self.sent += count
        self.last_byte = now


@dataclass(slots=True)
class BlobRecord:
    """What is remembered of one blob."""

    download: DownloadTimeline | None = None
    reading: Reading | None = None
    membership: float | None = None
    """Seconds that the build-index took to say whether the repository has it."""


@dataclass(slots=True, frozen=True)
class Lookup:
    """A tag or digest was looked up in the build-index."""

    began: float
    seconds: float
    digest: Digest


@dataclass(slots=True)
class ManifestRecord:
    """A manifest was read by a client."""

    digest: Digest
    began: float
    seconds: float
    source: str
    """``memory``, ``disk`` or ``origins``."""

    size: int
    blobs: Sequence[Digest] = ()
    children: Sequence[Digest] = field(default=())


class Journal:
    """The last pulls of this agent."""

    def __init__(self, began: float) -> None:
        self.began = began
        self._blobs: LRUCache[Digest, BlobRecord] = LRUCache(MAX_BLOBS)
        self._lookups: LRUCache[tuple[str, str], Lookup] = LRUCache(2 * MAX_MANIFESTS)
        self._manifests: FIFOCache[tuple[str, Digest], ManifestRecord] = FIFOCache(MAX_MANIFESTS)

    # -- what happens

    def begin_download(self, digest: Digest, now: float) -> DownloadTimeline:
        """A blob is being fetched."""
        timeline = DownloadTimeline(digest, now)
        self._record(digest).download = timeline
        return timeline

    def asked_membership(self, digest: Digest, seconds: float) -> None:
        """The build-index said whether a repository has a blob."""
        self._record(digest).membership = seconds

    def begin_reading(self, digest: Digest, now: float) -> Reading:
        """A client is about to read a blob."""
        reading = Reading(now)
        self._record(digest).reading = reading
        return reading

    def looked_up(
        self, repository: str, reference: Digest | str, digest: Digest, began: float, now: float
    ) -> None:
        """The build-index said what a reference is."""
        self._lookups[repository, str(reference)] = Lookup(began, now - began, digest)

    def knows(self, repository: str, digest: Digest) -> bool:
        """Whether the manifest was read before, so that its content is known."""
        return (repository, digest) in self._manifests

    def read_manifest(  # noqa: PLR0917 -- what is known of it
        self,
        repository: str,
        digest: Digest,
        began: float,
        now: float,
        source: str,
        size: int,
        content: Manifest | None,
    ) -> None:
        """A manifest is at hand; `content` may be left out when `knows` said so."""
        key = (repository, digest)
        known = self._manifests.pop(key, None)
        record = ManifestRecord(digest, began, now - began, source, size)
        if content is not None:
            blobs = dict.fromkeys(blob.digest for blob in content.blobs())
            record.blobs = tuple(blobs)[:MAX_BLOBS]
            record.children = tuple(child.digest for child in content.children[:MAX_MANIFESTS])
        elif known is not None:
            record.blobs, record.children = known.blobs, known.children
        self._manifests[key] = record

    # -- what is asked

    def blob(self, digest: Digest) -> BlobRecord | None:
        """What is remembered of a blob."""
        return self._blobs.get(digest)

    def lookup(self, repository: str, reference: Digest | str) -> Lookup | None:
        """The last lookup of a tag or digest."""
        return self._lookups.get((repository, str(reference)))

    def manifest(self, repository: str, digest: Digest) -> ManifestRecord | None:
        """The last time that a manifest was read."""
        return self._manifests.get((repository, digest))

    def _record(self, digest: Digest) -> BlobRecord:
        record = self._blobs.get(digest)
        if record is None:
            record = self._blobs[digest] = BlobRecord()
        return record
