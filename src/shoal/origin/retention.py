# SPDX-License-Identifier: Apache-2.0
"""Which copies an origin may give up at all, whatever the build-indexes say. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.model.digest import Digest

Reason = Literal["kept", "in_use", "young"]
"""Why a copy stays: marked to stay for good; being received, replicated or written to a backend
(from the push on); used within the grace time."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What an origin's disk says of one of its blobs."""

    digest: Digest
    size: int
    """Bytes."""

    last_used: float
    """Epoch seconds: when it was written, or somebody last relied on it."""

    kept: bool = False
    in_use: bool = False
    unbacked: bool = False
    """Somebody relies on the origins alone for it, whatever a backend has."""


def stays(copy: Copy, cutoff: float) -> Reason | None:
    """Why the copy stays, or None: it goes unless a build-index wants it.

    `cutoff` in epoch seconds: what was used since then is young.
    """
    if copy.kept:
        return "kept"
    if copy.in_use:
        return "in_use"
    return "young" if copy.last_used >= cutoff else None
