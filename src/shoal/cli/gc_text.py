# SPDX-License-Identifier: Apache-2.0
"""What ``shoal gc`` prints. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from shoal.buildindex.garbage import MAX_RELEASED, Doomed, GcReport
from shoal.cli.gc_run import Outcome
from shoal.origin.messages import SweepReport, Swept


def document(outcome: Outcome) -> str:
    """The reports of all services as JSON."""
    return msgspec.json.format(
        msgspec.json.encode(
            {
                "dry_run": outcome.dry_run,
                "build_indexes": outcome.marks,
                "origins": outcome.sweeps,
                "removed": sum(report.removed for report in outcome.sweeps.values()),
                "freed": sum(report.freed for report in outcome.sweeps.values()),
                "failures": outcome.failures,
            }
        )
    ).decode()


def lines(outcome: Outcome) -> Iterator[str]:
    """The reports of all services for people: per item what and why, then the totals."""
    would = "would " if outcome.dry_run else ""
    yield from _marked(outcome, f"{would}delete" if would else "deleted")
    yield from _swept(outcome, f"{would}remove" if would else "removed")


def _marked(outcome: Outcome, deleted: str) -> Iterator[str]:
    # Build-indexes have the same records: what one has deleted, another no longer has.
    items: dict[tuple[str, str, str], Doomed] = {}
    for report in outcome.marks.values():
        for item in report.items:
            items.setdefault((item.kind, item.repository, item.name), item)
    for item in items.values():
        what = "manifest" if item.kind == "manifest" else "link to blob"
        size = "" if item.size is None else f" ({_size(item.size)})"
        yield f"{deleted} {what} {item.repository}@{item.name}{size}: {item.why}"
    for host, report in outcome.marks.items():
        yield (
            f"build-index {host}: {report.repositories} repositories, {deleted} "
            f"{report.condemned_manifests} of {report.manifests} manifests and "
            f"{report.condemned_links} of {report.links} links{_cut(report)}"
        )


def _cut(report: GcReport) -> str:
    listed, all_ = len(report.items), report.condemned_manifests + report.condemned_links
    cut = "" if listed == all_ else f"; the first {listed} are listed"
    if len(report.released) == MAX_RELEASED:
        cut += f"; the origins were told of the first {MAX_RELEASED} digests: they would free more"
    return cut


def _swept(outcome: Outcome, removed: str) -> Iterator[str]:
    holders: dict[Swept, list[str]] = {}
    for host, report in outcome.sweeps.items():
        for item in report.items:
            holders.setdefault(item, []).append(host)
    for item, hosts in holders.items():
        where = ", ".join(hosts)
        yield f"{removed} blob {item.digest} ({_size(item.size)}) on {where}: {item.why}"
    for host, report in outcome.sweeps.items():
        yield f"origin {host}: {_counts(report, removed)}"
    if outcome.sweeps:
        copies = sum(report.examined for report in outcome.sweeps.values())
        gone = sum(report.removed for report in outcome.sweeps.values())
        freed = sum(report.freed for report in outcome.sweeps.values())
        free = "would free" if outcome.dry_run else "freed"
        yield (
            f"in all: {removed} {gone} of {copies} copies on {len(outcome.sweeps)} origins, "
            f"{free} {_size(freed)}"
        )


def _counts(report: SweepReport, removed: str) -> str:
    parts = [
        f"{report.wanted} needed",
        f"{report.young} used within the grace time",
        f"{report.kept} kept for good",
    ]
    if report.in_use:
        parts.append(f"{report.in_use} being written or replicated")
    if report.relied_on:
        parts.append(f"{report.relied_on} used while the sweep ran")
    listed = len(report.items)
    cut = "" if listed == report.removed else f"; the first {listed} are listed"
    return (
        f"{report.examined} blobs ({', '.join(parts)}), {removed} {report.removed} "
        f"({_size(report.freed)}){cut}"
    )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
