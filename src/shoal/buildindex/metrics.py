# SPDX-License-Identifier: Apache-2.0
"""What operators see of dependency resolution and of garbage collection."""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter, Histogram

Outcome = Literal["first_try", "after_retry", "exhausted", "permanent"]

_SECONDS = (0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
_ATTEMPTS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)

MANIFEST_DOWNLOADS = Counter(
    "shoal_manifest_downloads",
    "Manifests that were read from the origins to resolve a push, by outcome.",
    ["outcome"],
)
MANIFEST_ATTEMPTS = Histogram(
    "shoal_manifest_download_attempts",
    "Attempts that the download of a manifest took, whatever its outcome.",
    buckets=_ATTEMPTS,
)
DEPENDENCY_CHECKS = Counter(
    "shoal_dependency_checks",
    "Checks whether all that a manifest names is on the origins, by outcome.",
    ["outcome"],
)
DEPENDENCY_ATTEMPTS = Histogram(
    "shoal_dependency_check_attempts",
    "Attempts that a dependency check took, whatever its outcome.",
    buckets=_ATTEMPTS,
)
RESOLVE_SECONDS = Histogram(
    "shoal_dependency_resolution_seconds",
    "Seconds to resolve what a push needs, by result: accepted, or refused.",
    ["result"],
    buckets=_SECONDS,
)
PUSHES_SAVED = Counter(
    "shoal_pushes_saved_by_retry",
    "Pushes that were accepted and would have failed without a retry.",
)
COLLECTED = Counter(
    "shoal_gc_collected_records",
    "Records that garbage collection deleted, by kind.",
    ["kind"],
)
COLLECTIONS = Counter(
    "shoal_gc_runs",
    "Runs of garbage collection that were to delete something, by outcome.",
    ["outcome"],
)
COLLECTION_SECONDS = Histogram(
    "shoal_gc_seconds",
    "Seconds that a run of garbage collection took.",
    buckets=(0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 1800),
)
READ_THROUGH = Counter(
    "shoal_tag_backend_reads",
    "Tags, manifests and blobs that were looked up in a backend, by outcome.",
    ["outcome"],
)
REVALIDATIONS = Counter(
    "shoal_upstream_tag_checks",
    "Questions to upstreams whether a tag still holds, by outcome.",
    ["outcome"],
)
STALE_SERVED = Counter(
    "shoal_upstream_stale_tags_served",
    "Tags that were served although their upstream could not confirm them.",
    ["upstream"],
)

for _outcome in ("first_try", "after_retry", "exhausted", "permanent"):
    # What never happened yet is 0, not absent: alerts on its rate work from the first time on.
    MANIFEST_DOWNLOADS.labels(_outcome)
    DEPENDENCY_CHECKS.labels(_outcome)
for _outcome in ("found", "absent", "failed"):
    READ_THROUGH.labels(_outcome)
for _outcome in ("unchanged", "moved", "gone", "failed"):
    REVALIDATIONS.labels(_outcome)
for _kind in ("manifest", "blob"):
    COLLECTED.labels(_kind)
for _end in ("done", "failed"):
    COLLECTIONS.labels(_end)


def count(counter: Counter, attempts: Histogram, outcome: Outcome, made: int) -> None:
    """Count one download or check that took `made` attempts."""
    counter.labels(outcome).inc()
    attempts.observe(made)
