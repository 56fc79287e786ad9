# SPDX-License-Identifier: Apache-2.0
"""Rendezvous (highest random weight) hashing (Thaler and Ravishankar, 1998).

Each member gets a score from the digest and its own name alone, so that the order of the others
never depends on who joins or leaves: a change of members moves only what it must. The score is part
of the storage format: another one would move nearly every blob.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from shoal.model.digest import Digest

_SCORES = 2.0**64


def owners(
    digest: Digest | str,
    members: Iterable[str],
    count: int | None = None,
    *,
    weights: Mapping[str, float] | None = None,
) -> list[str]:
    """The members in the order in which they own the digest, best first; the first `count` of them.

    A member listed twice counts once. `weights` are relative to 1, the weight of a member that is
    not named there; a weight must be above 0.
    """
    key = str(digest).encode()
    shares = weights or {}
    # Equal scores fall back on the name, so that every host computes the same order.
    ranked = sorted(
        set(members), key=lambda member: (_score(key, member, shares.get(member, 1.0)), member)
    )
    return ranked if count is None else ranked[:count]


def _score(key: bytes, member: str, weight: float) -> float:
    """A draw from the exponential distribution with rate `weight`; the smallest draw wins.

    The least of such draws falls to each member with a probability in proportion to its weight
    (weighted rendezvous hashing).
    """
    if not weight > 0:
        raise ValueError(f"the weight of {member} must be above 0, got {weight}")
    drawn = int.from_bytes(blake2b(key + b"\n" + member.encode(), digest_size=8).digest(), "big")
    # The half keeps the logarithm's argument above 0; min() below 1 after rounding.
    return -math.log(min((drawn + 0.5) / _SCORES, 1.0 - 2.0**-53)) / weight
