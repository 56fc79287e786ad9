# SPDX-License-Identifier: Apache-2.0
"""The state of the peer endpoint as an operator sees it (`GET /swarm`)."""

from __future__ import annotations

from typing import Any

from shoal.swarm.node import SwarmNode


def swarm_view(node: SwarmNode) -> dict[str, Any]:
    """This peer, its links, and its blobs."""
    return {
        "peer": {"id": node.peer.id, "host": node.peer.host, "port": node.peer.port},
        "links": [
            {
                "id": peer,
                "host": link.peer.host,
                "port": link.peer.port,
                "origin": link.peer.origin,
                "dialed": link.dialed,
                "blobs": len(link.blobs),
                "bytes_asked_for": link.pace.in_flight,
                "pieces_to_send": link.connection.pieces_queued,
            }
            for peer, link in node.links.items()
            if link.peer is not None
        ],
        "blobs": [
            {
                "digest": str(digest),
                "size": blob.metainfo.size,
                "pieces": blob.count,
                "present": blob.pieces.present.bit_count(),
                "verified": blob.pieces.verified.bit_count(),
                "fetching": blob.picker is not None,
                "peers": len(blob.links),
            }
            for digest, blob in node.blobs.items()
        ],
    }
