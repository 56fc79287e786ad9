# SPDX-License-Identifier: Apache-2.0
"""Peers are kept away, longer each time, and no enemy fills the memory."""

from __future__ import annotations

import pytest

from shoal.swarm.bans import BORNE, Bans, KeptAway


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


PLACE, ADDRESS = "10.0.0.7:5012", "10.0.0.7"


def test_who_was_dialed_is_kept_away_from_its_place_both_ways() -> None:
    kept = KeptAway()
    assert kept.was_dialed(PLACE, 0.0) == 1
    assert not kept.may_be_dialed(PLACE, 1.0)
    assert not kept.may_stay("10.0.0.8", PLACE, 1.0)
    assert kept.may_be_dialed("10.0.0.7:5013", 1.0)
    assert kept.may_stay(ADDRESS, "10.0.0.7:5013", 1.0)
    assert kept.may_come(ADDRESS, 1.0)
    assert kept.may_be_dialed(PLACE, 31.0)


def test_who_came_does_not_come_again_and_whose_place_it_said_is_dialed() -> None:
    kept = KeptAway()
    assert kept.came(ADDRESS, PLACE, 0.0, grave=True) == 1
    assert kept.may_be_dialed(PLACE, 1.0)
    assert not kept.may_stay(ADDRESS, PLACE, 1.0)
    assert kept.may_stay("10.0.0.8", PLACE, 1.0)
    assert kept.may_stay(ADDRESS, "10.0.0.7:5013", 1.0)


def test_nobody_comes_from_an_address_of_which_several_did_grave_harm() -> None:
    kept = KeptAway()
    for number in range(BORNE):
        kept.came(ADDRESS, f"10.0.0.7:{number}", 0.0, grave=True)
        assert kept.may_come(ADDRESS, 0.0)
    kept.came(ADDRESS, "10.0.0.7:99", 0.0, grave=True)
    assert not kept.may_come(ADDRESS, 29.0)
    assert not kept.may_come("::ffff:10.0.0.7", 29.0)
    assert kept.may_come(ADDRESS, 30.0)
    assert kept.may_come("10.0.0.8", 0.0)
    kept.came(ADDRESS, "10.0.0.7:100", 30.0, grave=True)
    assert not kept.may_come(ADDRESS, 89.0)


def test_peers_that_are_only_slow_keep_nobody_else_of_their_address_away() -> None:
    kept = KeptAway()
    for number in range(100):
        kept.came(ADDRESS, f"10.0.0.7:{number}", 0.0, grave=False)
    assert kept.may_come(ADDRESS, 0.0)
    assert not kept.may_stay(ADDRESS, "10.0.0.7:99", 0.0)


def test_who_is_kept_away_is_listed_and_forgiven() -> None:
    kept = KeptAway()
    kept.was_dialed(PLACE, 0.0)
    kept.came("10.0.0.8", "10.0.0.8:1", 0.0, grave=False)
    assert kept.current(0.0) == {PLACE: 30.0, "10.0.0.8:1 from 10.0.0.8": 30.0}
    kept.forgive(20_000.0)
    assert kept.was_dialed(PLACE, 20_000.0) == 1


@pytest.mark.parametrize("address", ["", "fe80::1%eth0", "not an address"])
def test_any_text_is_an_address(address: str) -> None:
    kept = KeptAway()
    for _ in range(BORNE + 1):
        kept.came(address, PLACE, 0.0, grave=True)
    assert not kept.may_come(address, 1.0)
    assert kept.may_come(ADDRESS, 1.0)
