# SPDX-License-Identifier: Apache-2.0
"""What a build-index says about its resolutions: the metrics that operators have, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_SAVED = "shoal_pushes_saved_by_retry_total"
_DOWNLOADS = "shoal_manifest_download_attempts_bucket"
_CHECKS = "shoal_dependency_check_attempts_bucket"


@dataclass(frozen=True, slots=True)
class Resolutions:
    """How many attempts each step of a resolution took, and how many pushes a retry saved.

    Counts by number of attempts, as text: ``2``, ``7-8`` or ``>20``.
    """

    saved_by_retry: int
    downloads: Mapping[str, int]
    """Manifests that were read from the origins."""
    checks: Mapping[str, int]
    """Checks whether all that a manifest names is there."""

    def attempts(self) -> dict[str, int]:
        """Downloads and checks together."""
        every = {**self.downloads, **self.checks}
        counts = {
            attempts: self.downloads.get(attempts, 0) + self.checks.get(attempts, 0)
            for attempts in every
        }
        return dict(sorted(counts.items(), key=lambda count: _first(count[0])))


def resolutions(exposition: str) -> Resolutions:
    """Read the metrics of one build-index (Prometheus' text format)."""
    saved = 0.0
    cumulative: dict[str, dict[float, float]] = {_DOWNLOADS: {}, _CHECKS: {}}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == _SAVED:
                saved += sample.value
            elif sample.name in cumulative:
                cumulative[sample.name][float(sample.labels["le"])] = sample.value
    return Resolutions(
        int(saved), _by_attempts(cumulative[_DOWNLOADS]), _by_attempts(cumulative[_CHECKS])
    )


def _by_attempts(cumulative: Mapping[float, float]) -> dict[str, int]:
    """The counts of a histogram's buckets; those that are empty are left out."""
    counts: dict[str, int] = {}
    below, counted = 0.0, 0.0
    for bound in sorted(cumulative):
        count = int(cumulative[bound] - counted)
        if count:
            counts[_bucket(below, bound)] = count
        below, counted = bound, cumulative[bound]
    return counts


def _bucket(below: float, bound: float) -> str:
    if bound == math.inf:
        return f">{below:g}"
    first = int(below) + 1
    return f"{bound:g}" if first == int(bound) else f"{first}-{bound:g}"


def _first(bucket: str) -> int:
    """The least number of attempts in a bucket."""
    return int(bucket[1:]) + 1 if bucket.startswith(">") else int(bucket.partition("-")[0])
