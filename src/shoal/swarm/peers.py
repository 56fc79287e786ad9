# SPDX-License-Identifier: Apache-2.0
"""Who a peer is and where it listens."""

from __future__ import annotations

import secrets
from typing import Annotated

import msgspec

from shoal.config.units import join_address

PEER_ID_BYTES = 16


class PeerInfo(msgspec.Struct, frozen=True, gc=False):
    """One process of the swarm, as the tracker hands it out."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$", max_length=32)]
    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    zone: Annotated[str, msgspec.Meta(max_length=255)] = ""
    origin: bool = False

    @property
    def address(self) -> str:
        """``host:port``, an IPv6 host in brackets."""
        return join_address(self.host, self.port)


def new_peer_id() -> str:
    """A fresh peer id: 32 hex digits. A process takes a new one at each start."""
    return secrets.token_hex(PEER_ID_BYTES)
