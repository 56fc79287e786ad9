# SPDX-License-Identifier: Apache-2.0
"""What operators see of repair and scrub."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

PASSES = Counter(
    "shoal_repair_passes",
    "Looks at all copies of this origin: done; incomplete, when a member could not be asked or did "
    "not take what it lacked.",
    ["outcome"],
)
LACKING = Gauge(
    "shoal_repair_lacking_copies",
    "Copies that owners lack, of blobs of which this origin is the first holder.",
)
SPARE = Gauge("shoal_repair_spare_copies", "Copies on this origin that others own.")
SENT = Counter("shoal_repair_sent_blobs", "Copies that repair made on other origins.")
SENT_BYTES = Counter("shoal_repair_sent_bytes", "Bytes of the copies that repair made.")
FAILED = Counter("shoal_repair_failures", "Copies that repair could not make; it tries again.")
REMOVED = Counter("shoal_repair_removed_blobs", "Spare copies that were removed.")
FETCHED = Counter("shoal_repair_fetched_blobs", "Damaged copies that were fetched anew.")
DISKS_LOST = Counter("shoal_repair_disks_lost", "Times that the folders of the blobs vanished.")
DAMAGED = Gauge("shoal_damaged_blobs", "Blobs of which this origin has only a damaged copy.")

SCRUBBED = Counter("shoal_scrub_blobs", "Blobs that scrub has read and checked.")
SCRUBBED_BYTES = Counter("shoal_scrub_bytes", "Bytes that scrub has read and checked.")
ROTTEN = Counter("shoal_scrub_damaged", "Blobs that scrub found damaged.")
LAST_SCRUB = Gauge(
    "shoal_scrub_finished_timestamp_seconds", "When scrub had last seen every blob of this origin."
)

for _outcome in ("done", "incomplete"):
    # What never happened yet is 0, not absent: alerts on its rate work from the first time on.
    PASSES.labels(_outcome)
