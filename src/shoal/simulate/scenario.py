# SPDX-License-Identifier: Apache-2.0
"""What is simulated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal.swarm.metainfo import piece_size_for


@dataclass(frozen=True, slots=True)
class Scenario:
    """One image pulled by many hosts at the same time. Rates are bytes/s, times are seconds."""

    hosts: int = 2600
    origins: int = 5
    image: int = 3_000_000_000
    layers: int = 2
    rate: float = 300e6
    """Of every host's link, up and down each."""

    pieces: int = 358
    """Per layer."""

    zones: int = 1
    churn: float = 0.0
    """Share of the hosts that die without a word while they pull; a fresh one starts for each."""

    slow: float = 0.0
    """Share of the hosts that send at `SLOW_UP` of the rate and receive at `SLOW_DOWN` of it."""

    kill_origin: float | None = None
    """When one origin dies without a word; None for never."""

    seed: int = 1
    spread: float = 0.1
    """Hosts start within this time; each one's figures count from its own start."""

    replicas: int = 3
    """Origins that own a layer."""

    handout: int = 10
    max_dialed: int = 12
    max_accepted: int = 64

    latency: float = 0.000_25
    """One way, inside a zone."""

    far_latency: float = 0.001
    """One way, between zones."""

    verify_rate: float = 1e9
    """Bytes/s at which a piece is checked and written before it is shown to anyone."""

    limit: float | None = None
    """Virtual seconds after which the run is given up; by default 30 times the ideal, plus 60."""

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be simulated."""
        for name in ("hosts", "origins", "image", "layers", "rate", "pieces", "zones"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("churn", "slow"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share within 0 and 1, got {getattr(self, name)}")

    @property
    def piece_size(self) -> float:
        """Bytes of a piece; all have the same."""
        return self.image / (self.layers * self.pieces)

    @property
    def ideal(self) -> float:
        """Seconds that one host's link needs for the image."""
        return self.image / self.rate

    @property
    def given_up(self) -> float:
        """When the run ends whoever is not done."""
        return self.limit if self.limit is not None else 30 * self.ideal + 60


def cut(layer: int) -> int:
    """Into how many pieces the product cuts a layer of so many bytes."""
    return max(1, math.ceil(layer / piece_size_for(layer)))


SLOW_UP = 0.1
SLOW_DOWN = 2 / 3
