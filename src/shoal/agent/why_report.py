# SPDX-License-Identifier: Apache-2.0
"""What an agent answers when it is asked where the time of a pull went.

Fields that end in ``_at_s`` are seconds since the pull began, other ``_s`` are lengths of time;
None is what did not happen, or not yet.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from shoal.agent.timeline import Kind


class Status(StrEnum):
    """How a blob of the image was had."""

    FETCHED = "fetched"
    FETCHING = "fetching"
    FAILED = "failed"
    CACHED = "cached"
    """It was on this host's disk when the pull began."""

    UNREAD = "unread"
    """Nobody asked for it: the client had it, or has not come to it."""


class SourceReport(msgspec.Struct):
    """What came from one peer, or from the origins over HTTP."""

    name: str
    kind: Kind
    bytes: int = 0
    waited_s: float = 0.0
    """Time in which nothing came, until a piece came from here."""

    stalls: int = 0


class ManifestReport(msgspec.Struct):
    """A manifest or index that was read."""

    digest: str
    size: int
    asked_at_s: float
    read_s: float
    source: str


class BlobReport(msgspec.Struct):
    """A config or layer."""

    digest: str
    status: Status = Status.UNREAD
    in_pull: bool = False
    """Its download took place during this pull, not before it."""

    size: int | None = None
    membership_s: float | None = None
    """The build-index said whether the repository has it; mostly beside the download."""

    asked_at_s: float | None = None
    first_byte_at_s: float | None = None
    last_byte_at_s: float | None = None
    """When the client asked for it and was given the first and the last byte."""

    sent: int = 0
    reader_waited_s: float = 0.0
    download_at_s: float | None = None
    download_s: float = 0.0
    join_s: float = 0.0
    located_by: str = ""
    peers_offered: int = 0
    first_piece_s: float | None = None
    """From the start of the download."""

    pieces_s: float = 0.0
    """From the answer of the tracker to the last piece: the waits for all sources add up to it."""

    mb_per_s: float | None = None
    resumed: int = 0
    """Bytes that were on the disk from an earlier try."""

    verification_s: float = 0.0
    """From the last piece to the digest of the whole."""

    hashing_s: float = 0.0
    placing_s: float = 0.0
    silent_s: float = 0.0
    """While it is being fetched: since the last piece."""

    stalls: int = 0
    stalled_s: float = 0.0
    longest_stall_s: float = 0.0
    sources: list[SourceReport] = []
    error: str = ""

    @property
    def ended_at_s(self) -> float:
        """When its download had ended, or now."""
        return (self.download_at_s or 0.0) + self.download_s


class PullReport(msgspec.Struct):
    """One pull of an image."""

    repository: str
    reference: str
    digest: str
    age_s: float
    lookup_s: float | None
    manifests: list[ManifestReport]
    blobs: list[BlobReport]
    sources: list[SourceReport]
    total_s: float
    verdict: str = ""
