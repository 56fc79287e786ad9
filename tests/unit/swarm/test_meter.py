# SPDX-License-Identifier: Apache-2.0
"""The rate that is shown follows what comes within seconds."""

from __future__ import annotations

import pytest

from shoal.swarm.meter import Meter


def test_a_steady_flow_shows_its_rate() -> None:
    meter = Meter()
    for tick in range(200):
        meter.add(1000, tick / 10)
    assert meter.rate(19.9) == pytest.approx(10_000, rel=0.05)
    assert meter.total == 200_000


def test_a_flow_that_has_ended_is_soon_gone() -> None:
    meter = Meter()
    for tick in range(200):
        meter.add(1000, tick / 10)
    assert meter.rate(23.0) < 4000
    assert meter.rate(60.0) < 1
