# SPDX-License-Identifier: Apache-2.0
"""What one look at all copies of an origin has come to, while it goes on and afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Pass:
    """One look at all copies on this disk."""

    started: float
    """Epoch seconds."""
    total: int
    about: frozenset[str] | None
    """Members whose copies it is about; None: all."""

    finished: float | None = None
    examined: int = 0
    owned: int = 0
    owned_bytes: int = 0
    spare: int = 0
    """Copies of which this host is no owner."""
    lacking: Counter[str] = field(default_factory=Counter)
    """By member: copies that it lacks, counted by the first holder of each; as far as examined."""
    made: Counter[str] = field(default_factory=Counter)
    """By member: of those that it lacked, the ones that it has now."""
    sent: int = 0
    sent_bytes: int = 0
    failed: int = 0
    removed: int = 0
    removed_bytes: int = 0
    unasked: dict[str, str] = field(default_factory=dict)
    """Members that could not be asked, and why."""
    wait: float | None = None
    """Seconds until it is time to act in the place of other holders."""

    @property
    def complete(self) -> bool:
        """Whether all members answered and took what they lacked."""
        return not self.failed and not self.unasked

    def lacks(self, host: str) -> None:
        """A member was found to lack a copy."""
        self.lacking[host] += 1

    def got(self, host: str) -> None:
        """A member has a copy that it lacked."""
        self.lacking[host] -= 1
        self.made[host] += 1

    def why_not_sure(self) -> str:
        """Why there may be more missing than is known while this goes on; empty: there may not."""
        found = self.lacking.total() + self.made.total()
        if self.finished is not None or not found:
            return ""
        return f"{found} copies were missing in {self.examined} of {self.total} blobs looked at"
