# SPDX-License-Identifier: Apache-2.0
"""Why the connection to a peer was ended by this side, as it is counted."""

from __future__ import annotations

from enum import StrEnum


class Drop(StrEnum):
    """All reasons for which a peer is dropped that is at fault, or that does not answer."""

    PROTOCOL = "protocol"
    """It broke the protocol."""

    FLOOD = "flood"
    """It asked for ever: `shoal.swarm.floods`."""

    WRONG_PIECE = "wrong_piece"
    STALLED = "stalled"
    """It sent nothing of what it was asked for, again and again."""

    TRICKLE = "trickle"
    """It sent next to nothing of a piece."""

    UNREAD = "unread"
    """It took nothing of what was sent to it."""

    HANDSHAKE = "handshake"
    """It did not say who it is in time."""

    CHANNELS = "channels"
    """The connection has had as many blobs as it has numbers for: a new one begins anew."""


KEPT_AWAY = frozenset({Drop.FLOOD, Drop.WRONG_PIECE, Drop.STALLED, Drop.TRICKLE, Drop.UNREAD})
"""What keeps a peer away for a while; who only breaks the protocol may be of another version."""

GRAVE = frozenset({Drop.FLOOD, Drop.WRONG_PIECE})
"""What no honest peer does, however slow it is."""
