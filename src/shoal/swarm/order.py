# SPDX-License-Identifier: Apache-2.0
"""Which blob is asked for first: images take turns, and of an image its layers come in order.

A layer can be unpacked when those under it are, so most of the second one is of no use to anybody
before the first one is here. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from shoal.model.digest import Digest


class Place(NamedTuple):
    """Where a blob stands."""

    image: Digest
    """The manifest that names it, or the blob itself where none is known."""

    layer: int
    """Its place among the blobs of the manifest."""


class ImageTurns:
    """Whose turn it is: the image of which nothing was asked for longest, then its lowest layer."""

    def __init__(self) -> None:
        self._turns = itertools.count()
        self._last: dict[Digest, int] = {}

    def rank(self, place: Place) -> tuple[int, int]:
        """The blob of the lowest rank comes first."""
        return self._last.get(place.image, -1), place.layer

    def asked(self, place: Place) -> None:
        """A piece of this blob was asked for."""
        self._last[place.image] = next(self._turns)

    def forget(self, image: Digest) -> None:
        """Nothing of the image is fetched any longer."""
        self._last.pop(image, None)


def leading(places: Iterable[Place]) -> set[Place]:
    """Of each image the lowest layer."""
    first: dict[Digest, Place] = {}
    for place in places:
        found = first.get(place.image)
        if found is None or place.layer < found.layer:
            first[place.image] = place
    return set(first.values())
