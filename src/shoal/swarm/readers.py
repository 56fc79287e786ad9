# SPDX-License-Identifier: Apache-2.0
"""Who reads a blob on this host, and what each still needs: pieces are fetched in this order. Pure.

Readers come and go with the file, downloads with what is missing of it: a reader may be there
before anything is fetched (an earlier process's pieces are being checked) and when a cached file
turns out damaged. So they are noted here, and whoever fetches is told of all of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol


class Follower(Protocol):
    """Fetches what readers need (`shoal.swarm.blob.BlobSwarm`)."""

    def set_reader(self, reader: Hashable, start: int, stop: int) -> None: ...
    def remove_reader(self, reader: Hashable) -> None: ...


class Readers:
    """The readers of one file."""

    def __init__(self) -> None:
        self._spans: dict[Hashable, tuple[int, int]] = {}
        self._follower: Follower | None = None

    def set(self, reader: Hashable, start: int, stop: int) -> None:
        """A reader needs the bytes [start, stop) next, in order."""
        self._spans[reader] = start, stop
        if self._follower is not None:
            self._follower.set_reader(reader, start, stop)

    def remove(self, reader: Hashable) -> None:
        """A reader has what it wanted, or is gone."""
        if self._spans.pop(reader, None) is not None and self._follower is not None:
            self._follower.remove_reader(reader)

    def follow(self, follower: Follower) -> None:
        """Tell this one of those who read now, and of all changes; until `unfollow`."""
        self._follower = follower
        for reader, (start, stop) in self._spans.items():
            follower.set_reader(reader, start, stop)

    def unfollow(self) -> None:
        """Nothing is fetched any more."""
        self._follower = None
