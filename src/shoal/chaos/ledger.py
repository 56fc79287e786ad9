# SPDX-License-Identifier: Apache-2.0
"""What was acknowledged, and so must be there for ever; what pulls found. Pure.

Each tag has one writer, so what a reader may see is known: the last acknowledged push, or one that
was begun after it and never answered, which may have taken effect.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from shoal.model.digest import Digest


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image as a client remembers it once it was pushed."""

    repository: str
    tag: str
    root: Digest
    contents: tuple[tuple[Digest, int], ...]
    """Digest and size of each blob; the manifests name them, and are read on the way."""


class Ledger:
    """The books of one run. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.acknowledged: list[Pushed] = []
        self.operations: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.longest_unavailable = 0.0
        """Seconds for which one acknowledged image was wanted and had not come."""
        self.wrong_bytes = 0
        self._allowed: defaultdict[tuple[str, str], set[Digest]] = defaultdict(set)
        self._latest: dict[tuple[str, str], Pushed] = {}

    def begin(self, image: Pushed) -> None:
        """A push of a tag begins: from now on it may take effect."""
        self.operations["push"] += 1
        self._allowed[image.repository, image.tag].add(image.root)

    def acknowledge(self, image: Pushed) -> None:
        """The registry said yes."""
        key = image.repository, image.tag
        self.acknowledged.append(image)
        self._allowed[key] = {image.root}
        self._latest[key] = image

    def refused(self, why: str) -> None:
        """A push failed; it may have taken effect all the same, or in part."""
        self.failures[f"push: {why}"] += 1

    def latest(self) -> list[Pushed]:
        """The last acknowledged push of each tag."""
        return list(self._latest.values())

    def may_be(self, repository: str, tag: str) -> frozenset[Digest]:
        """The digests that the tag may have now."""
        return frozenset(self._allowed[repository, tag])

    def pulled(self) -> None:
        """A pull brought what it must."""
        self.operations["pull"] += 1

    def failed(self, why: str) -> None:
        """A try to pull failed."""
        self.failures[f"pull: {why}"] += 1

    def waited(self, seconds: float) -> None:
        """So long after somebody wanted an image it came, or was still not there."""
        self.longest_unavailable = max(self.longest_unavailable, seconds)

    def wrong(self) -> None:
        """A pull brought other bytes than were pushed."""
        self.operations["pull"] += 1
        self.wrong_bytes += 1
