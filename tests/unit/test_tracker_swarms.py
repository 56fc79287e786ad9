# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from dataclasses import dataclass

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
    return swarm.announce(peer(number), blob, complete=complete, now=now)


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
    told = swarm.announce(peer(200), BLOB, complete=False, origins=ORIGINS, now=1.0)
    assert len(told) == 10
    assert sum(other.origin for other in told) == 1


def test_origins_are_spread_over_the_peers() -> None:
    swarm = swarms(handout=1)
    first = {
        swarm.announce(peer(number), BLOB, complete=False, origins=ORIGINS, now=0.0)[0]
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
        )
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
    drawn = swarm._swarms[BLOB].leechers.draw(11, random.Random(2))
    assert len(set(drawn)) == 11
