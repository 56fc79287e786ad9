# SPDX-License-Identifier: Apache-2.0
"""Hybrid logical clock (Kulkarni et al., 2014): the versions of records.

A version is close to wall time, later than everything its node has seen, and unlike any other
node's. So of two writes where the second knew of the first, the second is newer on every host,
whatever the hosts' clocks say; of two concurrent ones every host picks the same. Pure: wall time is
a parameter.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

_BELOW_2_48 = msgspec.Meta(ge=0, lt=2**48)
_BELOW_2_31 = msgspec.Meta(ge=0, lt=2**31)


class Version(msgspec.Struct, frozen=True, order=True, array_like=True):
    """When and where a record was written; ordered by wall time (ms), then counter, then node."""

    wall_ms: Annotated[int, _BELOW_2_48]
    counter: Annotated[int, _BELOW_2_31]
    node: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]

    @property
    def adopted(self) -> bool:
        """Whether this is a version of `adopted_at`."""
        return self.wall_ms == 0

    @classmethod
    def adopted_at(cls, wall_ms: int, node: str) -> Version:
        """The version of what a node found in a backend at a moment (ms).

        It is older than every write: nothing that was written or deleted here loses against it.
        """
        return cls(0, min(max(wall_ms, 0) // 1000, 2**31 - 1), node)


class HybridClock:
    """Hands out the versions of one node, each later than all it has handed out or observed."""

    def __init__(self, node: str, last: Version | None = None) -> None:
        self.node = node
        self._wall_ms = last.wall_ms if last else 0
        self._counter = last.counter if last else 0

    def tick(self, wall_ms: int) -> Version:
        """A version for a write that happens now."""
        if wall_ms > self._wall_ms:
            self._wall_ms, self._counter = wall_ms, 0
        elif self._counter < 2**31 - 1:
            self._counter += 1
        else:
            self._wall_ms, self._counter = self._wall_ms + 1, 0
        return Version(self._wall_ms, self._counter, self.node)

    def observe(self, version: Version) -> None:
        """Take note of another node's version: from now on, versions of this one are later."""
        self._wall_ms, self._counter = max(
            (self._wall_ms, self._counter), (version.wall_ms, version.counter)
        )
