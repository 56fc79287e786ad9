# SPDX-License-Identifier: Apache-2.0
"""What ``shoal why`` prints. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal.agent.verdict import duration
from shoal.agent.why_report import BlobReport, PullReport, Status

_NONE = "-"


def lines(report: PullReport) -> Iterator[str]:
    """The verdict, the manifests, a row per blob, and a row per source."""
    joint = "@" if ":" in report.reference else ":"
    yield f"{report.repository}{joint}{report.reference}, pulled {_ago(report.age_s)}"
    yield report.verdict
    yield ""
    if report.lookup_s is not None:
        yield f"looked up in {duration(report.lookup_s)}: {report.digest}"
    for manifest in report.manifests:
        yield (
            f"manifest {_short(manifest.digest)} read from {manifest.source} "
            f"in {duration(manifest.read_s)}"
        )
    if report.blobs:
        yield ""
        yield from _table(_HEAD, [_row(blob) for blob in report.blobs])
    for blob in report.blobs:
        yield from _remarks(blob)
    if report.sources:
        yield ""
        yield from _table(
            ("SOURCE", "KIND", "MB", "WAITED", "STALLS"),
            [
                (it.name, str(it.kind), _mb(it.bytes), duration(it.waited_s), str(it.stalls))
                for it in report.sources
            ],
        )


_HEAD = (
    *("BLOB", "STATUS", "MB", "START", "MEMBER", "JOIN", "1ST PIECE", "PIECES"),
    *("VERIFY", "TOTAL", "MB/S", "READER WAITED"),
)


def _row(blob: BlobReport) -> Sequence[str]:
    head = (_short(blob.digest), str(blob.status))
    member = _NONE if blob.membership_s is None else duration(blob.membership_s)
    waited = _NONE if blob.asked_at_s is None else duration(blob.reader_waited_s)
    if not blob.in_pull:
        size = _NONE if blob.size is None else _mb(blob.size)
        started = _NONE if blob.asked_at_s is None else duration(blob.asked_at_s)
        return (*head, size, started, member, *(_NONE,) * 6, waited)
    return (
        *head,
        _NONE if blob.size is None else _mb(blob.size),
        _NONE if blob.download_at_s is None else duration(blob.download_at_s),
        member,
        duration(blob.join_s),
        _NONE if blob.first_piece_s is None else duration(blob.first_piece_s),
        duration(blob.pieces_s),
        duration(blob.verification_s),
        duration(blob.download_s),
        _NONE if blob.mb_per_s is None else f"{blob.mb_per_s:.0f}",
        waited,
    )


def _remarks(blob: BlobReport) -> Iterator[str]:
    name = _short(blob.digest)
    if blob.error:
        yield f"{name}: {blob.error}"
    if blob.stalls:
        yield (
            f"{name}: {blob.stalls} times nothing came, for {duration(blob.stalled_s)} together "
            f"and {duration(blob.longest_stall_s)} at most"
        )
    if blob.resumed:
        yield f"{name}: {_mb(blob.resumed)} MB were here from an earlier try"
    if blob.status is Status.FETCHING and blob.silent_s:
        yield f"{name}: the last piece came {duration(blob.silent_s)} ago"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        first, *rest = zip(row, widths, strict=True)
        cells = [f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in rest)]
        yield "  ".join(cells).rstrip()


def _short(digest: str) -> str:
    return digest[:19]


def _mb(count: int) -> str:
    return f"{count / 1e6:.3g}" if count < 10**6 else f"{count / 1e6:.1f}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"
