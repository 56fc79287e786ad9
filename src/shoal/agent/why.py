# SPDX-License-Identifier: Apache-2.0
"""Where the time of a pull went (`GET /why/{image}`, ``shoal why``): its timeline, told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.agent.timeline import (
    BlobRecord,
    DownloadTimeline,
    Journal,
    Kind,
    Lookup,
    ManifestRecord,
    Source,
)
from shoal.agent.verdict import verdict
from shoal.agent.why_report import BlobReport, ManifestReport, PullReport, SourceReport, Status
from shoal.model.digest import Digest
from shoal.model.errors import ManifestUnknown

_SAME_PULL = 5.0
"""Seconds from the lookup of a tag to the read of its manifest, when both are of one pull."""


def why(journal: Journal, repository: str, reference: Digest | str, now: float) -> PullReport:
    """Where the time of the last pull of an image went; raises `ManifestUnknown`."""
    lookup = journal.lookup(repository, reference)
    known = None if lookup is None else lookup.digest
    digest = reference if isinstance(reference, Digest) else known
    top = None if digest is None else journal.manifest(repository, digest)
    if top is None:
        joint = "@" if isinstance(reference, Digest) else ":"
        raise ManifestUnknown(
            f"{repository}{joint}{reference} was not pulled through this agent since it started, "
            f"{now - journal.began:.0f} s ago, or too many other images were since: "
            "was it pulled through another registry, or was it on this host already?",
            detail={"reference": str(reference)},
        )
    began = _began(top, [lookup, journal.lookup(repository, top.digest)])
    children = [journal.manifest(repository, child) for child in top.children]
    records = [top, *(child for child in children if child is not None)]
    digests = dict.fromkeys(blob for record in records for blob in record.blobs)
    blobs = [_blob(digest, journal.blob(digest), began, now) for digest in digests]
    report = PullReport(
        repository=repository,
        reference=str(reference),
        digest=str(top.digest),
        age_s=now - began,
        lookup_s=None if lookup is None else lookup.seconds,
        manifests=[_manifest(record, began) for record in records if record.began >= began],
        blobs=blobs,
        sources=_merged(blob.sources for blob in blobs if blob.in_pull),
        total_s=_end(records, blobs, began),
    )
    report.verdict = verdict(report)
    return report


def _began(record: ManifestRecord, lookups: Sequence[Lookup | None]) -> float:
    """When the client began to ask for a manifest: with a lookup, if that was just before."""
    began = record.began
    for lookup in lookups:
        if lookup is not None:
            since = record.began - (lookup.began + lookup.seconds)
            began = min(began, lookup.began) if 0 <= since <= _SAME_PULL else began
    return began


def _manifest(record: ManifestRecord, began: float) -> ManifestReport:
    return ManifestReport(
        digest=str(record.digest),
        size=record.size,
        asked_at_s=record.began - began,
        read_s=record.seconds,
        source=record.source,
    )


def _blob(digest: Digest, record: BlobRecord | None, began: float, now: float) -> BlobReport:
    report = BlobReport(digest=str(digest))
    if record is None:
        return report
    download, reading = record.download, record.reading
    if reading is not None and reading.began >= began:
        report.status = Status.CACHED
        report.asked_at_s = reading.began - began
        report.sent = reading.sent
        report.reader_waited_s = reading.waited
        report.membership_s = record.membership
        if reading.first_byte is not None:
            report.first_byte_at_s = reading.first_byte - began
        if reading.last_byte is not None:
            report.last_byte_at_s = reading.last_byte - began
    if download is not None:
        _describe(report, download, began, now)
    return report


def _describe(report: BlobReport, download: DownloadTimeline, began: float, now: float) -> None:
    ended = now if download.ended is None else download.ended
    if ended >= began:
        report.in_pull = True
        report.status = Status.FETCHED if download.ended is not None else Status.FETCHING
        if download.error:
            report.status, report.error = Status.FAILED, download.error
    came = download.last_piece
    located = ended if download.located is None else download.located
    report.size = download.size
    report.download_at_s = download.began - began
    report.download_s = ended - download.began
    report.join_s = located - download.began
    report.located_by = download.located_by
    report.peers_offered = download.peers_offered
    report.resumed = download.resumed
    report.hashing_s = download.hashing
    report.sources = _sources(download.sources)
    report.stalls = download.stalls.count
    report.stalled_s = download.stalls.seconds
    report.longest_stall_s = download.stalls.longest
    if download.first_piece is not None and came is not None:
        report.first_piece_s = download.first_piece - download.began
        report.pieces_s = came - located
        if came > located:
            report.mb_per_s = download.bytes / 1e6 / (came - located)
    if download.hashed is not None:
        report.verification_s = download.hashed - (located if came is None else came)
        report.placing_s = ended - download.hashed
    elif download.ended is None and download.located is not None:
        report.silent_s = now - (located if came is None else came)


def _sources(sources: dict[str, Source]) -> list[SourceReport]:
    return sorted(
        (
            SourceReport(name, kind=it.kind, bytes=it.bytes, waited_s=it.waited, stalls=it.stalls)
            for name, it in sources.items()
        ),
        key=lambda source: -source.bytes,
    )


def _merged(each: Iterable[Sequence[SourceReport]]) -> list[SourceReport]:
    merged: dict[tuple[str, Kind], SourceReport] = {}
    for sources in each:
        for source in sources:
            known = merged.setdefault(
                (source.name, source.kind), SourceReport(source.name, source.kind)
            )
            known.bytes += source.bytes
            known.waited_s += source.waited_s
            known.stalls += source.stalls
    return sorted(merged.values(), key=lambda source: -source.bytes)


def _end(records: Sequence[ManifestRecord], blobs: Sequence[BlobReport], began: float) -> float:
    """Seconds from the start of the pull to the end of whatever ended last."""
    ends = [record.began + record.seconds - began for record in records]
    ends += [blob.ended_at_s for blob in blobs if blob.in_pull]
    ends += [blob.last_byte_at_s for blob in blobs if blob.last_byte_at_s is not None]
    return max(ends)
