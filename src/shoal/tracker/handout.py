# SPDX-License-Identifier: Apache-2.0
"""Which peers a leecher is told of. Pure.

An answer holds one origin whenever there is one (agents that have the whole blob may be gone
without a word), then up to half of the room in agents that have the whole blob, then leechers: many
come at the same time, and they must know each other or all of them hang on the few that are
complete. Free room is filled with what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from shoal.swarm.peers import PeerInfo


def choose(
    me: str,
    *,
    origins: Sequence[PeerInfo],
    seeds: Sequence[PeerInfo],
    leechers: Sequence[PeerInfo],
    limit: int,
) -> list[PeerInfo]:
    """Up to `limit` (at least 1) peers for the leecher with the id `me`: each once, never itself.

    The candidates come in random order, as chance decides among equals.
    """
    others = [origin for origin in origins if origin.id != me]
    complete = [seed for seed in seeds if seed.id != me]
    first = others[:1]
    early_seeds = max(1, limit // 2) - len(first)
    wanted = chain(first, complete[:early_seeds], leechers, complete[early_seeds:], others[1:])
    chosen: dict[str, PeerInfo] = {}
    for peer in wanted:
        if peer.id != me:
            chosen.setdefault(peer.id, peer)
            if len(chosen) == limit:
                break
    return list(chosen.values())
