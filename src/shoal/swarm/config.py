# SPDX-License-Identifier: Apache-2.0
"""Config of the peer endpoint of an agent or an origin."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shoal.config.model import Config
from shoal.config.units import Address, Bytes, Duration


class PeerConfig(Config):
    """Where peers are reached, and how much of this host they may take."""

    listen: Address = "127.0.0.1:5012"
    advertise: Address | None = None
    """What other hosts dial; by default the address listened on."""

    max_accepted: Annotated[int, Field(ge=1)] = 64
    """Connections taken from others. More than are dialed, or swarms fall into islands."""

    max_dialed: Annotated[int, Field(ge=1)] = 12
    """Connections opened for one blob."""

    pipeline: Bytes = 8 * 1024 * 1024
    """Bytes of pieces asked for in advance from one peer."""

    buffers: Bytes = 64 * 1024 * 1024
    """Bytes of pieces received and not yet checked and written; sockets wait beyond it."""

    handshake_timeout: Duration = 5.0
    request_timeout: Duration = 4.0
    """A piece that takes longer than this is asked for elsewhere."""

    idle_timeout: Duration = 60.0
    """A connection over which nothing is wanted is closed after this."""
