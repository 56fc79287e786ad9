# SPDX-License-Identifier: Apache-2.0
"""Which of the origins that have a blob writes it to its backend. Pure.

The first one in ring order that still owes it. The others leave it to him as long as he is at it,
or waits for his turn, and also when he failed, as everybody does while the backend is down: only
when he fails although the backend answers others do they take his place.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from shoal.origin.messages import Owing

YIELDS_FOR = 24 * 3600.0
"""Seconds after which others are waited for no longer, while the backend answers: origins whose
weights of members differ might wait for each other."""


class Turn(Enum):
    """What the answers of those before this origin come to."""

    MINE = auto()
    """It writes the blob, if that is not there."""

    THEIRS = auto()
    """Another one writes it."""

    LOOK = auto()
    """Theirs, if the backend answers this origin and has not got the blob: then say `answered`."""


class Turns:
    """What one origin knows of the others' failures, by task."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, int]] = {}
        self._since: dict[str, float] = {}
        """When this origin began to leave a task to others."""

    def judge(self, task: str, said: Mapping[str, Owing], now: float) -> Turn:
        """Whose turn it is; `said`: those before this origin that still owe the blob.

        `now` in seconds of a monotonic clock.
        """
        if now - self._since.setdefault(task, now) >= YIELDS_FOR:
            return Turn.MINE
        seen = self._seen.get(task, {})
        turn = Turn.MINE
        for host, owing in said.items():
            known = seen.get(host)
            if owing.running or not owing.failures or owing.failures == known:
                return Turn.THEIRS
            if known is None or owing.failures < known:
                turn = Turn.LOOK
        return turn

    def answered(self, task: str, said: Mapping[str, Owing]) -> None:
        """The backend answered this origin: who fails from now on does not fail by its fault."""
        self._seen[task] = {host: owing.failures for host, owing in said.items()}

    def forget(self, task: str) -> None:
        """The backend did not answer this origin either, or the task is done."""
        self._seen.pop(task, None)
        self._since.pop(task, None)
