# SPDX-License-Identifier: Apache-2.0
"""Whether what is known of an upstream's tag is served, or asked for again. Pure.

A tag's record is written when the upstream confirms it, so its version says when that was, on every
build-index. A tag that the upstream said is gone has a record, too: a deletion.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from shoal.backend.upstreams import UpstreamConfig
from shoal.buildindex.clock import Version


class Decision(Enum):
    """What is done about a tag now."""

    SERVE = "serve"
    """What the record says holds: the digest, or that there is no such tag."""
    ASK = "ask"
    """The upstream is asked first."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What the upstream said last."""

    age: float
    """Seconds since then."""

    gone: bool
    """It had no such tag."""


def confirmed(held: tuple[Version, bool] | None, now_ms: int) -> Confirmed | None:
    """What a record's version, and whether it is a deletion, say; None: it was never asked."""
    if held is None:
        return None
    version, deleted = held
    return Confirmed(max(0, now_ms - version.wall_ms) / 1000, deleted)


def decide(known: Confirmed | None, config: UpstreamConfig) -> Decision:
    """Whether what is known holds still, by the upstream's `fresh` and `negative`."""
    if known is None:
        return Decision.ASK
    holds = config.negative if known.gone else config.fresh
    return Decision.SERVE if known.age < holds else Decision.ASK


def may_be_stale(known: Confirmed | None, config: UpstreamConfig) -> bool:
    """Whether the old digest is served while the upstream cannot be asked."""
    return known is not None and not known.gone and known.age < config.stale
