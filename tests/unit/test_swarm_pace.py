# SPDX-License-Identifier: Apache-2.0
"""How much is asked of one peer in advance, and when it is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.pace import KEPT, Intake, Pace

MIB = 1 << 20


def pace(limit: int = 8 * MIB, timeout: float = 4.0) -> Pace:
    return Pace(limit=limit, timeout=timeout)


def asked_at_once(it: Pace, length: int, now: float) -> int:
    pieces = 0
    while it.room(length, now):
        it.asked(length, now)
        pieces += 1
    return pieces


def test_one_piece_may_always_be_asked_for_however_large() -> None:
    assert asked_at_once(pace(limit=MIB), 8 * MIB, 0.0) == 1


def test_more_is_asked_for_in_advance_while_pieces_come_quickly_up_to_the_limit() -> None:
    it = pace()
    before = asked_at_once(it, MIB, 0.0)
    for _ in range(100):
        it.completed(MIB, 0.1, way=0.1, load=0)
        it.asked(MIB, 0.0)
    after = before + asked_at_once(it, MIB, 0.0)
    assert before < after == 8


def test_two_pieces_are_asked_for_in_advance_when_they_queue_up() -> None:
    it = pace()
    for _ in range(20):
        it.asked(MIB, 0.0)
        it.completed(MIB, 5.0, way=5.0, load=0)
    assert asked_at_once(it, MIB, 0.0) == 2


def test_a_peer_stalls_when_bytes_are_due_and_none_come() -> None:
    it = pace()
    assert not it.stalled(1000.0)
    it.asked(MIB, 1000.0)
    assert not it.stalled(1004.0)
    assert it.stalled(1004.1)
    it.bytes_came(1004.1)
    assert not it.stalled(1008.0)
    it.completed(MIB, 4.0, way=4.0, load=0)
    assert not it.stalled(9999.0)


def test_silence_counts_from_the_first_piece_asked_for_after_a_pause() -> None:
    it = pace()
    it.asked(MIB, 0.0)
    it.dropped(MIB)
    it.asked(MIB, 100.0)
    it.asked(MIB, 103.0)
    assert not it.stalled(104.0)
    assert it.stalled(104.5)


def test_who_was_quick_is_given_up_sooner_but_never_within_a_second() -> None:
    it = pace()
    it.asked(MIB, 0.0)
    it.completed(MIB, 0.01, way=0.01, load=0)
    it.asked(MIB, 100.0)
    assert not it.stalled(101.0)
    assert it.stalled(101.1)
    it.completed(MIB, 2.0, way=2.0, load=0)
    it.asked(MIB, 200.0)
    assert not it.stalled(202.0)
    assert it.stalled(202.1)


def test_another_piece_takes_longer_the_more_are_due() -> None:
    it = pace()
    assert it.expected == 0
    it.asked(MIB, 0.0)
    it.completed(MIB, 3.0, way=0.4, load=0)
    assert it.expected == pytest.approx(0.4)
    it.asked(MIB, 1.0)
    it.asked(MIB, 1.0)
    assert it.expected == pytest.approx(1.2)
    it.dropped(MIB)
    assert it.expected == pytest.approx(0.8)


def test_another_piece_takes_longer_the_more_others_waited_for_there_last() -> None:
    it = pace()
    it.asked(MIB, 0.0)
    it.completed(MIB, 0.4, way=0.4, load=9)
    assert it.expected == pytest.approx(4.0)
    it.asked(MIB, 1.0)
    assert it.expected == pytest.approx(4.4)
    it.completed(MIB, 5.0, way=0.4, load=0)
    assert it.expected == pytest.approx(0.4)


def test_a_peer_whose_pieces_take_longer_than_the_limit_is_given_twice_their_time() -> None:
    it = pace(timeout=4.0)
    it.asked(8 * MIB, 0.0)
    it.completed(8 * MIB, 5.0, way=5.0, load=0)
    it.asked(8 * MIB, 100.0)
    assert not it.stalled(110.0)
    assert it.stalled(110.1)


def test_a_part_of_what_is_asked_for_in_advance_is_kept_for_what_readers_wait_for() -> None:
    intake = Intake()
    while intake.spare():
        intake.asked()
    kept = 0
    while intake.room():
        intake.asked()
        kept += 1
    assert kept == KEPT
    assert not intake.spare()


def test_a_host_asks_for_so_many_pieces_in_advance_and_no_more() -> None:
    intake = Intake(ahead=2)
    intake.asked()
    assert intake.room()
    intake.asked()
    assert not intake.room()
    intake.settled()
    assert intake.room()


def test_a_peer_that_stalls_again_and_again_is_left_alone_for_longer_each_time() -> None:
    it = pace()
    away = []
    for strike in range(1, 10):
        assert it.punish(0.0) == strike
        away.append(next(t for t in range(100) if it.room(1, float(t))))
    assert away == sorted(away)
    assert away[0] == 2
    assert away[-1] == 60


def test_a_piece_that_comes_makes_good_for_stalls() -> None:
    it = pace()
    it.punish(0.0)
    it.punish(10.0)
    it.asked(MIB, 20.0)
    it.completed(MIB, 0.1, way=0.1, load=0)
    assert it.punish(30.0) == 1


@given(
    st.lists(
        st.tuples(st.integers(1, 8 * MIB), st.sampled_from(["come", "drop", "stay"])), max_size=50
    ),
    st.integers(MIB, 64 * MIB),
)
def test_bytes_in_flight_are_those_asked_for_and_neither_come_nor_dropped(
    pieces: list[tuple[int, str]], limit: int
) -> None:
    it = pace(limit)
    due = 0
    for length, fate in pieces:
        if not it.room(length, 0.0):
            continue
        assert due == 0 or due + length <= limit
        it.asked(length, 0.0)
        if fate == "come":
            it.completed(length, 0.1, way=0.1, load=0)
        elif fate == "drop":
            it.dropped(length)
        else:
            due += length
        assert it.in_flight == due


@pytest.mark.parametrize("took", [0.0, 0.4, 1.0, 1.6, 100.0])
def test_whatever_pieces_take_one_can_be_asked_for(took: float) -> None:
    it = pace()
    for _ in range(50):
        it.asked(MIB, 0.0)
        it.completed(MIB, took, way=took, load=0)
        assert it.room(MIB, 0.0)
