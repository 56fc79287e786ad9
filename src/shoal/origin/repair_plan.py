# SPDX-License-Identifier: Apache-2.0
"""What an origin does about one of its copies, given what the other members said of it. Pure.

All holders come to the same decision: the first of them in ring order gives the owners that lack
the blob their copies. Another one does so only when they still lack it after a while. A member that
could not be asked counts neither as one that has the blob nor as one that lacks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

HOLD = 300.0
"""Seconds for which a copy stays on which somebody counts who removes his own."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the other members said of one blob; who is in neither set could not be asked."""

    whole: AbstractSet[str] = frozenset()
    """They have a copy of the right size."""

    absent: AbstractSet[str] = frozenset()
    """They answered that they have none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about one copy."""

    lacking: tuple[str, ...] = ()
    """Owners that answered that they have no copy."""

    send: bool = False
    """This host gives those that lack it their copies, now."""

    wait: float | None = None
    """Seconds after which this host does so if nobody else has; None: there is nothing to do."""

    first: bool = False
    """This host is the first that is known to have the blob: the one that counts what lacks."""

    spare: bool = False
    """Every owner has the blob, and this host is not one of them."""


def owners_besides(name: str, ring: Sequence[str], replicas: int) -> list[str]:
    """Whom to ask about a blob: its owners, but for this host."""
    return [host for host in ring[:replicas] if host != name]


def others_before(name: str, ring: Sequence[str], replicas: int, said: Said) -> list[str]:
    """Whom else to ask: members that may have to send in place of this one, as no owner can.

    `ring` are all members in the order in which they should have the blob.
    """
    own = ring[:replicas]
    if name in own or not said.absent or said.whole & set(own):
        return []
    return list(ring[replicas : _place(name, ring)])


def plan(
    name: str,
    ring: Sequence[str],
    replicas: int,
    said: Said,
    *,
    lacking_for: float,
    takeover: float,
) -> Plan:
    """Decide about the copy on the member `name`.

    `lacking_for`: seconds since this host first saw that owners lack the blob; `takeover`: seconds
    that each holder before this one has for making up for it.
    """
    own = ring[:replicas]
    before = [host for host in ring[: _place(name, ring)] if host in said.whole]
    lacking = tuple(host for host in own if host != name and host in said.absent)
    if not lacking:
        # A host that is no member (any more) keeps what it has: its list may be what is wrong.
        spare = name in ring and name not in own and all(host in said.whole for host in own)
        return Plan(spare=spare)
    left = len(before) * takeover - lacking_for
    if left > 0:
        return Plan(lacking, wait=left)
    return Plan(lacking, send=True, first=not before)


def may_go(last_used: float, changed_at: float, now: float, grace: float) -> bool:
    """Whether a spare copy may go: it was not used, nor did the ring change, for `grace` seconds.

    A list of hosts that flaps for a moment thus moves nothing.
    """
    return max(last_used, changed_at) + grace <= now


def _place(name: str, ring: Sequence[str]) -> int:
    return ring.index(name) if name in ring else len(ring)
