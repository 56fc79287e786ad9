# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is to be sent to, and which connection makes room."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.slots import (
    FEW,
    IDLE,
    LOOK,
    SLOW,
    TAKES,
    TENURE,
    LinkPolicy,
    Standing,
    UploadSlots,
)


def test_peers_are_sent_to_in_turn_each_in_the_order_in_which_it_asked() -> None:
    slots = UploadSlots(slots=1)
    for piece in (1, 2):
        slots.ask("ann", piece)
    slots.ask("bob", 7)
    order = []
    while (turn := slots.next(0.0)) is not None:
        order.append(turn)
        assert slots.next(0.0) is None
        slots.sent(turn[0])
    assert order == [("ann", 1), ("bob", 7), ("ann", 2)]


def test_an_urgent_piece_goes_before_the_others_of_all_peers() -> None:
    slots = UploadSlots(slots=1)
    slots.ask("ann", 1)
    slots.ask("bob", 2)
    slots.ask("cyd", 3, urgent=True)
    assert slots.next(0.0) == ("cyd", 3)


def test_a_piece_no_longer_wanted_is_not_sent() -> None:
    slots = UploadSlots(slots=1)
    slots.ask("ann", 1)
    assert slots.cancel("ann", 1)
    assert not slots.cancel("ann", 1)
    assert slots.next(0.0) is None


def test_the_load_for_a_peer_is_what_others_wait_for() -> None:
    slots = UploadSlots(slots=1)
    for peer, piece in (("ann", 1), ("ann", 2), ("bob", 1), ("bob", 2), ("bob", 3)):
        slots.ask(peer, piece)
    assert (slots.load("ann"), slots.load("bob"), slots.load("cyd")) == (3, 2, 5)
    assert slots.next(0.0) == ("ann", 1)
    assert (slots.load("ann"), slots.load("bob")) == (3, 2)  # what is under way counts, too
    slots.sent("ann")
    slots.cancel("bob", 3)
    assert (slots.load("ann"), slots.load("bob")) == (2, 1)
    slots.leave("bob")
    assert (slots.load("ann"), slots.load("cyd")) == (0, 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "cancel", "leave", "next", "sent"]),
            st.sampled_from(["ann", "bob", "cyd"]),
            st.integers(0, 3),
            st.booleans(),
        )
    )
)
def test_nobody_waits_where_all_was_sent_cancelled_or_left(
    steps: list[tuple[str, str, int, bool]],
) -> None:
    slots = UploadSlots(slots=2)
    for step, peer, piece, urgent in steps:
        if step == "ask":
            slots.ask(peer, piece, urgent=urgent)
        elif step == "cancel":
            slots.cancel(peer, piece)
        elif step == "leave":
            slots.leave(peer)
        elif step == "sent":
            slots.sent(peer)
        else:
            slots.next(0.0)
        assert slots.load("dan") >= sum(slots.waiting(peer) for peer in ("ann", "bob", "cyd")) >= 0
    for peer in ("ann", "bob", "cyd"):
        slots.sent(peer)
    while (turn := slots.next(0.0)) is not None:
        slots.sent(turn[0])
    assert slots.load("dan") == 0


def test_a_peer_that_takes_slowly_holds_nobody_up_for_long() -> None:
    slots = UploadSlots(slots=1, max_slow=1)
    for name in ("ann", "bob", "cyd"):
        slots.ask(name, 0)
    assert slots.next(0.0) == ("ann", 0)
    assert slots.next(SLOW / 2) is None
    assert slots.next(SLOW) == ("bob", 0)
    assert slots.next(9 * SLOW) is None


def test_a_peer_that_is_gone_frees_its_slot() -> None:
    slots = UploadSlots(slots=1)
    slots.ask("ann", 0)
    slots.ask("bob", 0)
    assert slots.next(0.0) == ("ann", 0)
    slots.leave("ann")
    assert slots.next(0.0) == ("bob", 0)


def crowd(slots: UploadSlots, count: int) -> list[str]:
    """Peers that a piece is under way to, all of them slow by now."""
    names = [f"peer-{number}" for number in range(count)]
    for number, name in enumerate(names):
        slots.ask(name, 0)
        assert slots.next(SLOW * number) == (name, 0)
    return names


def test_peers_that_take_next_to_nothing_hold_up_nobody_however_many_they_are() -> None:
    slots = UploadSlots(slots=1, max_slow=2)
    names = crowd(slots, 3)
    slots.ask("ann", 0)
    now = 10 * SLOW
    assert slots.next(now) is None
    taken = dict.fromkeys(names, 5000)
    slots.look(taken, now)
    assert slots.next(now + LOOK) is None, "nobody is judged by one look"
    slots.look(taken | {names[0]: 5000 + int(TAKES * LOOK) - 1}, now + LOOK)
    assert slots.next(now + LOOK) == ("ann", 0)
    slots.ask("bob", 0)
    assert slots.next(now + LOOK) is None, "ann holds the slot"
    assert set(slots.sending()) == {*names, "ann"}


def test_a_peer_that_takes_again_counts_again() -> None:
    slots = UploadSlots(slots=1, max_slow=0)
    slots.ask("ann", 0)
    slots.ask("bob", 0)
    assert slots.next(0.0) == ("ann", 0)
    slots.look({"ann": 0}, 0.0)
    slots.look({"ann": 0}, LOOK)
    slots.look({"ann": TAKES}, 2 * LOOK)
    assert slots.next(2 * LOOK) is None
    slots.look({"ann": TAKES}, 3 * LOOK)
    assert slots.next(3 * LOOK) == ("bob", 0)


def test_a_peer_that_this_side_holds_back_is_not_idle() -> None:
    slots = UploadSlots(slots=1, max_slow=0)
    slots.ask("ann", 0)
    slots.ask("bob", 0)
    assert slots.next(0.0) == ("ann", 0)
    slots.look({"ann": 0}, 0.0)
    slots.look({}, LOOK)
    slots.look({"ann": 0}, 2 * LOOK)
    assert slots.next(2 * LOOK) is None


def test_a_peer_s_next_piece_is_judged_anew() -> None:
    slots = UploadSlots(slots=1, max_slow=0)
    slots.ask("ann", 0)
    assert slots.next(0.0) == ("ann", 0)
    for now in (0.0, LOOK):
        slots.look({"ann": 0}, now)
    slots.sent("ann")
    slots.ask("ann", 1)
    slots.ask("bob", 0)
    assert slots.next(2 * LOOK) == ("ann", 1)
    assert slots.next(2 * LOOK) is None


@given(
    asked=st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9)), max_size=60),
    places=st.integers(1, 3),
)
def test_all_that_was_asked_for_is_sent_once_and_nobody_waits_longer_than_a_round(
    asked: list[tuple[str, int]], places: int
) -> None:
    slots = UploadSlots(slots=places)
    for peer, piece in asked:
        slots.ask(peer, piece)
    sent: list[tuple[str, object]] = []
    while (turn := slots.next(0.0)) is not None:
        sent.append(turn)
        slots.sent(turn[0])
    assert Counter(sent) == Counter(asked)
    peers = {peer for peer, _ in asked}
    assert {peer for peer, _ in sent[: len(peers)]} == peers


def standing(peer: str, *, since: float = 0.0, wanted: float = 0.0, busy: bool = False) -> Standing:
    return Standing(peer, since, wanted, busy)


def test_more_must_be_accepted_than_dialed() -> None:
    with pytest.raises(ValueError, match="islands"):
        LinkPolicy(max_dialed=10, max_accepted=10)


@given(
    max_dialed=st.integers(1, 20),
    more=st.integers(1, 80),
    blobs=st.lists(st.integers(0, 30), max_size=40),
)
def test_fewer_are_dialed_than_accepted_over_all_blobs_and_each_blob_has_a_few_peers(
    max_dialed: int, more: int, blobs: list[int]
) -> None:
    policy = LinkPolicy(max_dialed=max_dialed, max_accepted=max_dialed + more)
    dialed = 0
    for candidates in blobs:
        # Nobody is a candidate of two blobs: the worst case.
        to_dial = min(candidates, policy.to_dial(0, 0, dialed))
        connected = dialed
        dialed += to_dial
        shared = min(connected, policy.to_share(to_dial, 0)) if to_dial < candidates else 0
        enough = min(candidates, max_dialed, FEW)
        assert to_dial + shared >= enough
    assert dialed <= policy.most < policy.max_accepted


def test_one_blob_may_dial_all_that_it_wants() -> None:
    policy = LinkPolicy(max_dialed=12, max_accepted=64)
    assert policy.to_dial(0, 0, 0) == 12
    assert policy.to_dial(5, 9, 20) == 7
    assert policy.to_dial(0, 0, 28) == 4
    assert policy.to_dial(0, 0, 40) == FEW
    assert policy.to_dial(0, FEW, 40) == 0
    assert policy.to_dial(0, 0, 48) == 0
    assert policy.to_share(2, 3) == 7


def test_of_connections_that_serve_nothing_the_one_idle_for_the_longest_time_is_spared() -> None:
    policy = LinkPolicy(max_dialed=1, max_accepted=2)
    dialed = [standing("ann", wanted=3.0), standing("bob", wanted=1.0, busy=True)]
    assert policy.spare(dialed, 3.0 + IDLE) is None
    assert policy.spare(dialed, 3.1 + IDLE) == "ann"


def test_the_connection_idle_for_the_longest_time_makes_room() -> None:
    policy = LinkPolicy(max_dialed=1, max_accepted=2)
    assert policy.has_room(1)
    assert not policy.has_room(2)
    accepted = [standing("ann", wanted=3.0), standing("bob", wanted=1.0)]
    assert policy.make_room(accepted, 5.0) == "bob"
    assert policy.make_room([standing("ann", wanted=5.0)], 5.0 + IDLE / 2) is None


def test_connections_in_use_are_rotated_after_their_tenure_one_at_a_time() -> None:
    policy = LinkPolicy(max_dialed=1, max_accepted=2)
    accepted = [standing("ann", since=1.0, busy=True), standing("bob", since=2.0, busy=True)]
    assert policy.make_room(accepted, TENURE) is None
    assert policy.make_room(accepted, 2 + TENURE) == "ann"
    assert policy.make_room(accepted[1:], 2.1 + TENURE) is None
    assert policy.make_room(accepted[1:], 2 + TENURE + IDLE) == "bob"
