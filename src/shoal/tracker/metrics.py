# SPDX-License-Identifier: Apache-2.0
"""The tracker's own metrics: read from its state when they are asked for."""

from __future__ import annotations

from prometheus_client import Gauge

from shoal.tracker.metainfos import Metainfos
from shoal.tracker.swarms import Swarms

_SWARMS = Gauge("shoal_tracker_swarms", "Blobs that some peer has or fetches.")
_PEERS = Gauge("shoal_tracker_peers", "Peers heard of within their time to live.")
_MEMBERSHIPS = Gauge("shoal_tracker_memberships", "Pairs of a peer and a blob.")
_METAINFO_BYTES = Gauge("shoal_tracker_metainfo_bytes", "Bytes of metainfos in memory.")


def export(swarms: Swarms, metainfos: Metainfos) -> None:
    """Show this tracker's state in the metrics of the process."""
    _SWARMS.set_function(lambda: swarms.swarm_count)
    _PEERS.set_function(lambda: swarms.peer_count)
    _MEMBERSHIPS.set_function(lambda: swarms.membership_count)
    _METAINFO_BYTES.set_function(lambda: metainfos.bytes)
