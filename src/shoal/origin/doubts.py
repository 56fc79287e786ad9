# SPDX-License-Identifier: Apache-2.0
"""Why it cannot be said that no copy is missing, until a look at the copies has told. Pure.

An origin that has just started, a member that was away, a disk that was lost: from then on, what
earlier looks found says nothing, however good it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

About = frozenset[str] | None
"""Members whose copies it is about; None: all."""


class Doubts:
    """Those of one origin. Each is settled by a look that began after it arose."""

    def __init__(self) -> None:
        self._number = 0
        self._open: dict[tuple[About, str], int] = {}
        self._lasting: list[str] = []

    def arose(self, about: Iterable[str] | None, why: str) -> None:
        """Something happened after which these members, or any, may lack copies."""
        self._number += 1
        members = None if about is None else frozenset(about)
        self._open[members, why] = self._number

    @contextmanager
    def lasting(self, why: str) -> Iterator[None]:
        """Meanwhile nothing can be said, whatever looks find."""
        self._lasting.append(why)
        try:
            yield
        finally:
            self._lasting.remove(why)

    def begun(self) -> int:
        """A look begins now: what to give `settled` when it has seen all."""
        return self._number

    def settled(self, about: About, begun: int) -> None:
        """A look at the copies of these members, or of all, has seen all that it was to see."""
        self._open = {
            (members, why): number
            for (members, why), number in self._open.items()
            if number > begun or not _covers(about, members)
        }

    def why(self) -> list[str]:
        """What is open, in words; nothing when the last look tells the truth."""
        return [*dict.fromkeys(why for _, why in self._open), *self._lasting]


def _covers(looked: About, doubted: About) -> bool:
    return looked is None or (doubted is not None and doubted <= looked)
