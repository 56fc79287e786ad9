# SPDX-License-Identifier: Apache-2.0
"""What operators see of the sweeps of an origin."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

SWEEPS = Counter(
    "shoal_gc_sweeps",
    "Sweeps of this origin, dry runs apart: done; stopped, before all blobs were looked at; "
    "refused, as too much would have gone; failed.",
    ["outcome"],
)
SWEPT_BLOBS = Counter("shoal_gc_swept_blobs", "Blobs that sweeps removed from this origin.")
SWEPT_BYTES = Counter("shoal_gc_swept_bytes", "Bytes of the blobs that sweeps removed.")

for _outcome in ("done", "stopped", "refused", "failed"):
    # What never happened yet is 0, not absent: alerts on its rate work from the first time on.
    SWEEPS.labels(_outcome)

WRITTEN_BYTES = Counter("shoal_writeback_bytes", "Bytes of blobs written to backends.")
REFRESHES = Counter(
    "shoal_refreshes",
    "Blobs that no origin had, asked of backends and upstreams: fetched; absent there; failed, "
    "could not be asked or kept; wrong, what came was not the blob.",
    ["outcome"],
)
FETCHED_BYTES = Counter("shoal_refresh_bytes", "Bytes of blobs fetched from backends.")
PREFETCHES = Counter(
    "shoal_prefetches",
    "Blobs that an operator asked for and no origin had: fetched, also by somebody else meanwhile; "
    "failed.",
    ["outcome"],
)
PREFETCHES_WAITING = Gauge("shoal_prefetches_waiting", "Blobs that wait to be prefetched.")

for _outcome in ("fetched", "absent", "failed", "wrong"):
    REFRESHES.labels(_outcome)
for _outcome in ("fetched", "failed"):
    PREFETCHES.labels(_outcome)
