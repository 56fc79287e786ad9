# SPDX-License-Identifier: Apache-2.0
"""One line on where the time of a pull went. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal.agent.timeline import Kind
from shoal.agent.why_report import BlobReport, PullReport, SourceReport, Status

_LOCATING = {
    "origins": "waiting for the origins to say who has the blob",
    "manifest": "waiting for an origin to give the blob",
}
_SHORT = 19
"""Characters of a digest that tell it from others: the algorithm and 12 digits."""


def verdict(report: PullReport) -> str:
    """What the pull waited for most, and where its bytes came from."""
    failed = [blob for blob in report.blobs if blob.status is Status.FAILED]
    if failed:
        return f"failed: {failed[0].error}"
    fetched = [blob for blob in report.blobs if blob.in_pull]
    if not fetched:
        return _nothing_fetched(report)
    last = max(fetched, key=_ended)
    seconds, what = max(_causes(report, last))
    of_blob = f" (blob {last.digest[:_SHORT]})" if len(fetched) > 1 else ""
    parts = [f"{duration(seconds)} of {duration(report.total_s)} {what}{of_blob}"]
    parts += shares(report.sources)
    if stalls := sum(blob.stalls for blob in fetched):
        stalled = duration(sum(blob.stalled_s for blob in fetched))
        parts.append(f"{stalls} stall{'s' if stalls > 1 else ''}, {stalled}")
    if any(blob.status is Status.FETCHING for blob in fetched):
        parts.insert(0, "it still runs")
    return "; ".join(parts)


def shares(sources: Sequence[SourceReport]) -> list[str]:
    """``62 % from peers`` and the like, down to 1 %; nothing when no bytes came."""
    total = sum(source.bytes for source in sources)
    if not total:
        return []
    kinds = ((Kind.AGENT, "peers"), (Kind.ORIGIN, "origins"), (Kind.HTTP, "origins over HTTP"))
    parts = []
    for kind, name in kinds:
        count = sum(source.bytes for source in sources if source.kind is kind)
        if round(100 * count / total):
            parts.append(f"{100 * count / total:.0f} % from {name}")
    return [", ".join(parts)]


def duration(seconds: float) -> str:
    """Seconds, or milliseconds below one."""
    return f"{seconds:.1f} s" if seconds >= 0.9995 else f"{1000 * seconds:.0f} ms"


def _nothing_fetched(report: PullReport) -> str:
    read = sum(blob.status is Status.CACHED for blob in report.blobs)
    if read == 0:
        return "no blob was asked for since the manifest was: the client had them all"
    return (
        f"nothing was fetched: what was asked for ({read} of {len(report.blobs)} blobs) was on "
        f"this host's disk; {duration(report.total_s)} in all"
    )


def _ended(blob: BlobReport) -> float:
    return max(blob.ended_at_s, blob.last_byte_at_s or 0.0)


def _causes(report: PullReport, blob: BlobReport) -> Iterator[tuple[float, str]]:
    """What the last blob, and the pull before it, waited for."""
    if report.lookup_s is not None:
        yield report.lookup_s, "looking up the reference at the build-index"
    for manifest in report.manifests:
        yield manifest.read_s, f"reading a manifest from {_place(manifest.source)}"
    if blob.membership_s is not None:
        yield blob.membership_s, "asking the build-index whether the repository has the blob"
    yield (
        blob.join_s,
        _LOCATING.get(blob.located_by, "waiting for the tracker to say who has the blob"),
    )
    for source in blob.sources:
        yield source.waited_s, f"waiting for {_name(source)}"
    yield blob.silent_s, "waiting for anybody to send a piece"
    yield blob.verification_s, "verifying the digest of the whole after the last piece"
    yield blob.placing_s, "moving the blob into the cache"
    if blob.last_byte_at_s is not None:
        taken = blob.last_byte_at_s - max(blob.ended_at_s, blob.first_byte_at_s or 0.0)
        yield taken, "until the client had taken what was here"
    started = min(at for at in (blob.download_at_s, blob.asked_at_s) if at is not None)
    before = sum(manifest.read_s for manifest in report.manifests) + (report.lookup_s or 0.0)
    yield started - before, "until the client asked for the blob that came last"


def _name(source: SourceReport) -> str:
    return source.name if source.kind is Kind.HTTP else f"{source.kind} {source.name}"


def _place(source: str) -> str:
    return {"memory": "memory", "disk": "the disk"}.get(source, "the origins")
