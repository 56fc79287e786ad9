# SPDX-License-Identifier: Apache-2.0
"""Peers are kept away, longer each time, and no enemy fills the memory."""

from __future__ import annotations

from shoal.swarm.bans import Bans


def test_a_peer_is_kept_away_twice_as_long_each_time() -> None:
    bans, now = Bans(), 0.0
    for strikes, seconds in ((1, 30), (2, 60), (3, 120)):
        assert bans.add("liar", now) == strikes
        assert bans.holds("liar", now + seconds - 1)
        assert not bans.holds("liar", now + seconds)
        now += seconds
    assert not bans.holds("honest", 0.0)


def test_a_peer_is_never_kept_away_for_more_than_an_hour() -> None:
    bans = Bans()
    for _ in range(30):
        bans.add("liar", 0.0)
    assert bans.current(0.0) == {"liar": 3600.0}


def test_old_deeds_are_forgiven() -> None:
    bans = Bans()
    bans.add("liar", 0.0)
    bans.forgive(3600.0)
    assert bans.add("liar", 3600.0) == 2
    bans.forgive(20_000.0)
    assert bans.add("liar", 20_000.0) == 1


def test_an_enemy_with_ever_new_names_does_not_fill_the_memory() -> None:
    bans = Bans()
    for number in range(20_000):
        bans.add(str(number), 0.0)
    assert len(bans.current(0.0)) == 10_000
    assert bans.holds("19999", 0.0)
