# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.peers import PeerInfo
from shoal.tracker.handout import choose
from shoal.tracker.swarms import Swarms

BLOB = "sha256:" + "a" * 64
OTHER_BLOB = "sha256:" + "b" * 64
TTL = 100.0


def peer(number: int, *, host: str | None = None, origin: bool = False) -> PeerInfo:
    return PeerInfo(f"{number:032x}", host or f"10.0.0.{number}", 5012, origin=origin)


ORIGINS = [peer(1000 + number, host=f"origin-{number}", origin=True) for number in range(3)]


def swarms(handout: int = 10) -> Swarms:
    return Swarms(peer_ttl=TTL, handout=handout, rng=random.Random(1))


def join(
    swarm: Swarms, number: int, now: float = 0.0, *, complete: bool = False, blob: str = BLOB
) -> list[PeerInfo]:
    return swarm.announce(peer(number), blob, complete=complete, now=now).peers


def test_peers_of_a_blob_learn_of_each_other() -> None:
    swarm = swarms()
    assert join(swarm, 1) == []
    assert join(swarm, 2) == [peer(1)]
    assert join(swarm, 1) == [peer(2)]
    assert join(swarm, 3, blob=OTHER_BLOB) == []


def test_a_complete_peer_is_told_of_nobody_and_others_of_it() -> None:
    swarm = swarms()
    join(swarm, 1)
    assert join(swarm, 2, complete=True) == []
    assert join(swarm, 3)[0] == peer(2)


def test_a_peer_that_is_not_heard_of_is_forgotten() -> None:
    swarm = swarms()
    join(swarm, 1, now=0.0)
    join(swarm, 2, now=60.0)
    assert join(swarm, 3, now=TTL + 1) == [peer(2)]
    assert swarm.peer_count == 2


def test_an_announce_keeps_a_peer() -> None:
    swarm = swarms()
    join(swarm, 1, now=0.0)
    join(swarm, 1, now=90.0)
    assert join(swarm, 2, now=TTL + 50) == [peer(1)]


def test_a_peer_that_left_is_not_handed_out() -> None:
    swarm = swarms()
    join(swarm, 1)
    join(swarm, 1, blob=OTHER_BLOB)
    swarm.leave(peer(1).id, [BLOB])
    assert join(swarm, 2) == []
    assert join(swarm, 2, blob=OTHER_BLOB) == [peer(1)]
    swarm.leave(peer(1).id)
    assert join(swarm, 3, blob=OTHER_BLOB) == [peer(2)]


def test_leaving_what_was_never_joined_changes_nothing() -> None:
    swarm = swarms()
    join(swarm, 1)
    swarm.leave(peer(7).id)
    swarm.leave(peer(1).id, [OTHER_BLOB])
    assert join(swarm, 2) == [peer(1)]


def test_a_peer_that_joins_again_takes_its_own_place_in_every_swarm() -> None:
    swarm = swarms()
    join(swarm, 1)
    join(swarm, 1, blob=OTHER_BLOB)
    moved = peer(1, host="10.0.9.9")
    swarm.announce(moved, BLOB, complete=True, now=1.0)
    assert join(swarm, 2) == [moved]
    assert join(swarm, 2, blob=OTHER_BLOB) == [moved]


def test_a_process_that_restarted_replaces_the_one_that_had_its_address() -> None:
    swarm = swarms()
    join(swarm, 1)
    join(swarm, 1, blob=OTHER_BLOB)
    restarted = PeerInfo("f" * 32, peer(1).host, peer(1).port)
    swarm.announce(restarted, BLOB, complete=False, now=1.0)
    assert join(swarm, 2) == [restarted]
    assert join(swarm, 2, blob=OTHER_BLOB) == []


def test_nothing_is_kept_of_swarms_that_are_over() -> None:
    swarm = swarms()
    for number in range(1, 50):
        join(swarm, number, blob=OTHER_BLOB if number % 2 else BLOB)
    swarm.expire(TTL + 1)
    assert (swarm.swarm_count, swarm.peer_count, swarm.membership_count) == (0, 0, 0)
    assert not swarm._addresses


def test_whether_others_have_the_blob_does_not_count_oneself() -> None:
    swarm = swarms()
    assert not swarm.has_others(BLOB, peer(1).id, 0.0)
    join(swarm, 1)
    assert not swarm.has_others(BLOB, peer(1).id, 0.0)
    assert swarm.has_others(BLOB, peer(2).id, 0.0)


def test_in_a_crowd_one_origin_and_many_leechers_are_handed_out() -> None:
    swarm = swarms()
    for number in range(1, 200):
        join(swarm, number)
    told = swarm.announce(peer(200), BLOB, complete=False, origins=ORIGINS, now=1.0).peers
    assert len(told) == 10
    assert sum(other.origin for other in told) == 1


@pytest.mark.parametrize("complete", [0, 40])
def test_all_of_a_kind_are_handed_out_about_as_often(complete: int) -> None:
    """By chance alone some would be handed out twice as often as others."""
    swarm = swarms(handout=12)
    kind = range(1, 1 + (complete or 100))
    told = Counter[str]()
    for number in kind:
        told.update(other.id for other in join(swarm, number, complete=bool(complete)))
    for number in range(101, 301) if complete else 6 * list(kind):
        told.update(other.id for other in join(swarm, number))
    counts = [told[peer(number).id] for number in kind]
    assert min(counts) > 20
    assert max(counts) <= 1.2 * min(counts)


def test_origins_are_spread_over_the_peers() -> None:
    swarm = swarms(handout=1)
    first = {
        swarm.announce(peer(number), BLOB, complete=False, origins=ORIGINS, now=0.0).peers[0]
        for number in range(1, 60)
    }
    assert first == set(ORIGINS)


@dataclass(frozen=True)
class Step:
    number: int
    complete: bool
    leave: bool
    now: float


steps = st.lists(
    st.builds(
        Step,
        st.integers(1, 8),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
        st.floats(0, 3 * TTL),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 6), st.integers(0, 3))
def test_a_hand_out_is_bounded_alive_not_oneself_and_has_a_source(
    taken: list[Step], handout: int, origin_count: int
) -> None:
    swarm = swarms(handout)
    origins = ORIGINS[:origin_count]
    alive: dict[int, tuple[bool, float]] = {}
    for step in sorted(taken, key=lambda step: step.now):
        if step.leave:
            swarm.leave(peer(step.number).id)
            alive.pop(step.number, None)
            continue
        told = swarm.announce(
            peer(step.number), BLOB, complete=step.complete, origins=origins, now=step.now
        ).peers
        alive[step.number] = (step.complete, step.now + TTL)
        alive = {number: what for number, what in alive.items() if what[1] > step.now}
        others = {peer(number) for number in alive if number != step.number}
        seeds = {peer(n) for n, (whole, _) in alive.items() if whole and n != step.number}
        assert peer(step.number) not in told
        if step.complete:
            assert told == []
            continue
        assert len(told) == len(set(told)) == min(handout, len(others) + origin_count)
        assert set(told) <= others | set(origins)
        if origins:
            assert set(told) & set(origins)
        elif seeds:
            assert set(told) & seeds


@given(
    st.lists(st.integers(1, 6), unique=True),
    st.lists(st.integers(1, 6), unique=True),
    st.lists(st.integers(1, 6), unique=True),
    st.integers(1, 8),
)
def test_a_choice_names_each_peer_once_even_if_it_is_on_every_list(
    origins: list[int], seeds: list[int], leechers: list[int], limit: int
) -> None:
    chosen = choose(
        peer(1).id,
        origins=list(map(peer, origins)),
        seeds=list(map(peer, seeds)),
        leechers=list(map(peer, leechers)),
        limit=limit,
    )
    everyone = {*origins, *seeds, *leechers} - {1}
    assert len({other.id for other in chosen}) == len(chosen) == min(limit, len(everyone))
    assert peer(1) not in chosen


def test_a_large_swarm_is_handed_out_in_constant_time() -> None:
    swarm = swarms()
    for number in range(20_000):
        swarm.announce(
            PeerInfo(f"{number:032x}", "10.0.0.1", number + 1), BLOB, complete=False, now=0.0
        )
    assert swarm.peer_count == 20_000
    told = join(swarm, 30_000)
    assert len({other.id for other in told}) == 10


def test_joining_and_leaving_again_and_again_does_not_make_a_peer_live_longer() -> None:
    swarm = swarms()
    for second in range(10):
        join(swarm, 1, now=float(second))
        swarm.leave(peer(1).id)
    join(swarm, 1, now=50.0)
    join(swarm, 1, now=60.0)
    swarm.expire(60.0 + TTL - 1)
    assert swarm.membership_count == 1
    swarm.expire(60.0 + TTL)
    assert (swarm.membership_count, len(swarm._expiry)) == (0, 0)


def zoned(number: int, zone: str) -> PeerInfo:
    return PeerInfo(f"{number:032x}", f"10.0.0.{number}", 5012, zone)


def crowd(zones: int = 3, hosts: int = 40) -> tuple[Swarms, dict[str, list[PeerInfo]]]:
    swarm = swarms()
    everyone = {
        f"zone-{zone}": [zoned(hosts * zone + host, f"zone-{zone}") for host in range(hosts)]
        for zone in range(zones)
    }
    for members in everyone.values():
        for member in members:
            swarm.announce(member, BLOB, complete=False, now=0.0)
    return swarm, everyone


def test_hosts_are_told_of_their_own_zone_and_only_its_relays_of_others() -> None:
    swarm, everyone = crowd()
    for zone, members in everyone.items():
        relays = 0
        for member in members:
            told = swarm.announce(member, BLOB, complete=False, now=1.0)
            assert told.peers
            outside = [other for other in told.peers if other.zone != zone]
            assert bool(outside) == (told.share is not None)
            relays += told.share is not None
        assert 1 <= relays < len(members) / 2


def test_the_relays_of_a_zone_share_the_pieces_among_them() -> None:
    swarm, everyone = crowd()
    for members in everyone.values():
        told = [swarm.announce(member, BLOB, complete=False, now=1.0).share for member in members]
        shares = [share for share in told if share is not None]
        assert len({places for _, places in shares}) == 1
        assert sorted(place for place, _ in shares) == list(range(shares[0][1]))


def test_the_place_of_a_relay_that_is_gone_is_taken_by_the_next_that_announces_itself() -> None:
    swarm, everyone = crowd()
    first = everyone["zone-0"]
    lost = next(
        member
        for member in first
        if swarm.announce(member, BLOB, complete=False, now=1.0).share is not None
    )
    swarm.leave(lost.id)
    shares = {
        swarm.announce(member, BLOB, complete=False, now=2.0).share
        for member in first
        if member != lost
    } - {None}
    places = max(share[1] for share in shares if share is not None)
    assert len(shares) == places


def test_who_is_starved_may_fetch_everything_from_any_zone() -> None:
    swarm, everyone = crowd()
    seed = zoned(250, "zone-9")
    swarm.announce(seed, BLOB, complete=True, now=0.0)
    last = everyone["zone-0"][-1]
    told = swarm.announce(last, BLOB, complete=False, starved=True, now=1.0)
    assert seed in told.peers
    assert told.share == (0, 1)
    told = swarm.announce(last, BLOB, complete=False, now=2.0)
    assert told.share is None
    assert {other.zone for other in told.peers} == {last.zone}


def test_an_origin_of_another_zone_is_left_to_relays_as_long_as_there_are_others() -> None:
    swarm, everyone = crowd()
    members = everyone["zone-1"]
    told = {
        member: swarm.announce(member, BLOB, complete=False, origins=ORIGINS, now=1.0)
        for member in members
    }
    with_origin = [it for it in told.values() if any(other.origin for other in it.peers)]
    assert with_origin
    assert all(it.share is not None for it in with_origin)


def test_what_another_tracker_heard_counts_as_long_as_nothing_newer_is_known() -> None:
    swarm = swarms()
    swarm.announce(peer(1), BLOB, complete=True, now=50.0)
    swarm.restore(peer(1), BLOB, complete=False, heard=40.0, now=60.0)
    assert swarm.peers(BLOB, 60.0).seeds == [peer(1)]
    swarm.restore(peer(2), BLOB, complete=True, heard=40.0, now=60.0)
    assert set(swarm.peers(BLOB, 60.0).seeds) == {peer(1), peer(2)}
    swarm.left(peer(1).id, BLOB, heard=45.0)
    swarm.left(peer(2).id, None, heard=45.0)
    assert swarm.peers(BLOB, 60.0).seeds == [peer(1)]
    assert swarm.peers(BLOB, 50.0 + TTL).seeds == []


def test_a_restored_peer_lives_no_longer_than_where_it_was_heard() -> None:
    swarm = swarms()
    join(swarm, 1, now=60.0)
    swarm.restore(peer(2), BLOB, complete=False, heard=10.0, now=60.0)
    swarm.restore(peer(3), BLOB, complete=False, heard=-TTL, now=60.0)
    assert set(swarm.peers(BLOB, 60.0).leechers) == {peer(1), peer(2)}
    assert swarm.peers(BLOB, 10.0 + TTL).leechers == [peer(1)]


def test_a_restored_peer_does_not_displace_the_process_that_has_its_address_now() -> None:
    swarm = swarms()
    new = PeerInfo("f" * 32, peer(1).host, peer(1).port)
    swarm.announce(new, BLOB, complete=True, now=50.0)
    swarm.restore(peer(1), OTHER_BLOB, complete=True, heard=40.0, now=60.0)
    assert swarm.peers(BLOB, 60.0).seeds == [new]
    assert swarm.peers(OTHER_BLOB, 60.0).seeds == []
