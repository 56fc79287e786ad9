# SPDX-License-Identifier: Apache-2.0
"""The peer endpoint as an operator sees it (`GET /swarm` of agents and origins)."""

from __future__ import annotations

from statistics import median
from typing import Any

from shoal.swarm.blob import BlobSwarm
from shoal.swarm.link import Link
from shoal.swarm.node import SwarmNode

_SLOW = 4
"""A peer that pieces are due from is slow when it sends less than the median by this factor, or
nothing at all; in that case also while it is asked for nothing because of that."""


def swarm_view(node: SwarmNode) -> dict[str, Any]:
    """This peer, its links, its blobs, and who is slow. Rates in bytes/s, times in seconds."""
    now = node.now()
    links = [link for link in node.links.values() if link.peer is not None]
    due = [link.received.rate(now) for link in links if link.pace.in_flight]
    typical = median(due) if due else 0.0
    return {
        "peer": {
            "id": node.peer.id,
            "host": node.peer.host,
            "port": node.peer.port,
            "zone": node.peer.zone,
            "tls": node.secured,
        },
        "limits": {
            "ingress": node.config.ingress,
            "egress": node.config.egress,
            "per_blob": node.config.per_blob,
        },
        "receiving": sum(link.received.rate(now) for link in links),
        "sending": sum(link.sent.rate(now) for link in links),
        "links": [_link(node, link, typical, now) for link in links],
        "kept_away": node.neighbours.bans.current(now),
        "blobs": [_blob(blob) for blob in node.blobs.values()],
    }


def _link(node: SwarmNode, link: Link, typical: float, now: float) -> dict[str, Any]:
    assert link.peer is not None  # noqa: S101 chosen so by the caller
    receiving = link.received.rate(now)
    return {
        "id": link.peer.id,
        "host": link.peer.host,
        "port": link.peer.port,
        "zone": link.peer.zone,
        "origin": link.peer.origin,
        "dialed": link.dialed,
        "age": now - link.since,
        "blobs": len(link.blobs),
        "receiving": receiving,
        "sending": link.sent.rate(now),
        "received": link.received.total,
        "sent": link.sent.total,
        "bytes_asked_for": link.pace.in_flight,
        "pieces_to_send": link.connection.pieces_queued + node.uploads.waiting(link),
        "paused": link.connection.paused,
        "slow": link.pace.away(now)
        or link.pace.stalled(now)
        or (bool(link.pace.in_flight) and receiving * _SLOW < typical),
    }


def _blob(blob: BlobSwarm) -> dict[str, Any]:
    return {
        "digest": str(blob.digest),
        "size": blob.metainfo.size,
        "pieces": blob.count,
        "present": blob.pieces.present.bit_count(),
        "verified": blob.pieces.verified.bit_count(),
        "fetching": blob.picker is not None,
        "peers": len(blob.links),
    }
