# SPDX-License-Identifier: Apache-2.0
"""Which fault comes when: a plan that depends on nothing but the seed and the shape. Pure.

A ring of R copies survives any single loss of data, so the plan takes one origin at a time: the
next fault begins when the one before is healed, and what was wiped is whole again. That is the
promise under test. Faults that lose no data strike wherever they like, all services at once too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from shoal.cluster.layout import Shape


class Kind(StrEnum):
    """What is done to a service."""

    KILL = "kill"
    """SIGKILL, and a new start."""

    STOP = "stop"
    """SIGSTOP: its sockets stay open and nobody answers; then SIGCONT."""

    WIPE = "wipe"
    """SIGKILL, all of its data removed, and a new start."""

    FILL = "fill"
    """It cannot write to its disk: any write that makes a file longer fails."""

    CUT = "cut"
    """Connections to it are reset, and new ones go unanswered."""

    BACKEND = "backend"
    """The object storage answers nothing."""

    BLACKOUT = "blackout"
    """SIGKILL of every service at the same moment, and a new start of all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what, to whom (a service's name; none for all or the backend), for how long."""

    kind: Kind
    target: str
    seconds: float
    """From the fault to its healing."""

    pause: float
    """Seconds of quiet after it."""


_WEIGHTS: dict[tuple[Kind, str], int] = {
    (Kind.KILL, "origin"): 5,
    (Kind.WIPE, "origin"): 4,
    (Kind.STOP, "origin"): 4,
    (Kind.FILL, "origin"): 3,
    (Kind.CUT, "origin"): 4,
    (Kind.KILL, "build-index"): 3,
    (Kind.STOP, "build-index"): 2,
    (Kind.CUT, "build-index"): 2,
    (Kind.KILL, "tracker"): 2,
    (Kind.STOP, "tracker"): 1,
    (Kind.CUT, "tracker"): 1,
    (Kind.KILL, "proxy"): 2,
    (Kind.WIPE, "proxy"): 1,
    (Kind.STOP, "proxy"): 1,
    (Kind.FILL, "proxy"): 1,
    (Kind.KILL, "agent"): 2,
    (Kind.WIPE, "agent"): 2,
    (Kind.FILL, "agent"): 2,
    (Kind.BACKEND, ""): 4,
    (Kind.BLACKOUT, ""): 2,
}
"""How often each comes, relative to the others. Build-indexes are not wiped: their replication is
asynchronous, and says so."""


def faults(
    seed: int, shape: Shape, *, shortest: float = 1.0, longest: float = 6.0
) -> Iterator[Fault]:
    """Faults without end; each `shortest` to `longest` seconds, as are the pauses half as long.

    The first ones are one of each kind and role, in random order: a short run sees as many kinds
    as it has time for. What follows is drawn by weight.
    """
    random = Random(f"chaos/{seed}")
    counts = shape.counts()
    choices = [choice for choice in _WEIGHTS if not choice[1] or counts[choice[1]]]
    first = random.sample(choices, len(choices))
    weights = [_WEIGHTS[choice] for choice in choices]
    while True:
        kind, role = first.pop() if first else random.choices(choices, weights)[0]
        target = f"{role}-{random.randrange(counts[role])}" if role else ""
        yield Fault(
            kind, target, random.uniform(shortest, longest), random.uniform(shortest, longest) / 2
        )
