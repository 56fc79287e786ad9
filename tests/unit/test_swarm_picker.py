# SPDX-License-Identifier: Apache-2.0
"""The picker against a plain model of a download, and that it comes to its end."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.swarm import bits as bitset
from shoal.swarm.picker import MAX_COPIES, MAX_PATIENCE, PATIENCE, Picker

NAMES = ["ann", "bob", "cyd", "dan", "eve"]


def of(members: Iterable[int]) -> int:
    return sum(1 << index for index in members)


def picker(count: int, have: Iterable[int] = (), *, window: int = 4) -> Picker:
    return Picker(count, of(have), rng=random.Random(3), window=(window, window))


# -- in examples


def test_pieces_behind_a_reader_come_before_others_and_of_each_the_rarest_first() -> None:
    p = picker(12)
    p.add_peer("ann", bitset.full(12), seed=False)
    p.add_peer("bob", of(set(range(12)) - {4, 10}), seed=False)
    p.set_reader("r", 2, 0.0)
    asked = [p.pick("ann", 0.0) for _ in range(5)]
    assert asked[0] == 4
    assert set(asked[1:4]) == {2, 3, 5}
    assert asked[4] == 10


def test_the_window_begins_at_the_first_missing_piece_behind_the_reader() -> None:
    p = picker(20, have=range(3, 7))
    p.add_peer("ann", bitset.full(20), seed=False)
    p.set_reader("r", 3, 0.0)
    assert {p.pick("ann", 0.0) for _ in range(4)} == {7, 8, 9, 10}


def test_the_window_moves_with_the_reader() -> None:
    p = picker(100)
    p.add_peer("ann", bitset.full(100), seed=False)
    for reader, position in (("r", 0), ("r", 50), ("other", 90)):
        p.set_reader(reader, position, 0.0)
        assert p.pick("ann", 0.0) in range(position, position + 4)
        if reader == "r" and position == 50:
            p.remove_reader("r")


def test_what_a_reader_waits_for_is_asked_for_in_order_and_only_its_next_pieces() -> None:
    p = picker(20, window=16)
    p.add_peer("ann", bitset.full(20), seed=False)
    p.set_reader("r", 2, 0.0)
    asked = [p.pick_for_reader(0.0, lambda _: 0.1) for _ in range(5)]
    assert asked == [("ann", 2), ("ann", 3), ("ann", 4), ("ann", 5), None]


def test_readers_take_turns_in_what_they_wait_for_and_in_their_windows() -> None:
    p = picker(90, window=8)
    p.add_peer("ann", bitset.full(90), seed=False)
    starts = [60, 0, 30]
    for start in starts:
        p.set_reader(start, start, 0.0)
    asked = [p.pick_for_reader(0.0, lambda _: 0.1) for _ in range(6)]
    assert asked == [("ann", start + step) for step in range(2) for start in starts]
    near = [p.pick("ann", 0.0) for _ in range(6)]
    assert [index // 30 * 30 for index in near if index is not None] == 2 * starts


def test_a_reader_is_given_no_more_than_it_reads_to() -> None:
    p = picker(90, have=[31], window=16)
    p.add_peer("ann", bitset.full(90), seed=False)
    p.set_reader("range", 30, 0.0, stop=33)
    assert [p.is_near(index, 0.0) for index in (30, 32, 33)] == [True, True, False]
    assert [p.urgency(index) for index in (29, 30, 32, 33)] == [90, 0, 2, 90]
    asked = [p.pick_for_reader(0.0, lambda _: 0.1) for _ in range(3)]
    assert asked == [("ann", 30), ("ann", 32), None]
    assert p.pick("ann", 0.0, beyond=False) is None


def test_a_reader_that_has_all_that_it_reads_waits_for_nothing() -> None:
    p = picker(9, have=range(4, 9))
    p.add_peer("ann", bitset.full(9), seed=False)
    p.set_reader("range", 5, 0.0, stop=7)
    p.set_reader("last", 8, 0.0)
    assert p.pick_for_reader(0.0, lambda _: 0.1) is None
    p.set_reader("first", 0, 0.0)
    assert p.pick_for_reader(0.0, lambda _: 0.1) == ("ann", 0)


def test_what_a_seed_shows_is_asked_for_in_order() -> None:
    p = picker(12)
    p.add_peer("seed", of([3, 7, 8]), seed=True)
    p.add_peer("ann", of([3, 7]), seed=False)
    assert [p.pick("seed", 0.0) for _ in range(3)] == [3, 7, 8]


def test_a_relay_asks_outside_its_zone_for_its_share_alone() -> None:
    p = picker(9)
    p.set_share((1, 3))
    p.add_peer("far", bitset.full(9), seed=False, outside=True)
    p.set_reader("r", 0, 0.0)
    asked = [p.pick("far", 0.0) for _ in range(4)]
    assert asked[:3] == [1, 4, 7]
    assert asked[3] is None
    p.set_share((0, 1))
    assert p.pick("far", 0.0) in {0, 2, 3}
    p.set_share(None)
    assert p.pick("far", 0.0) is None


def test_what_no_reader_waits_for_is_left_alone_when_told_so_unless_a_seed_shows_it() -> None:
    p = picker(20)
    p.add_peer("ann", of([1, 9]), seed=False)
    p.add_peer("seed", of([12]), seed=True)
    p.set_reader("r", 0, 0.0)
    assert p.promising(0.0, beyond=False) == ["ann", "seed"]
    assert [p.pick("ann", 0.0, beyond=False) for _ in range(2)] == [1, None]
    assert p.pick("seed", 0.0, beyond=False) == 12
    assert p.pick("ann", 0.0) == 9
    assert p.promising(0.0) == ["seed"]


def test_where_nobody_reads_all_pieces_are_alike() -> None:
    p = picker(20)
    p.add_peer("ann", of([9]), seed=False)
    assert p.promising(0.0, beyond=False) == ["ann"]
    assert p.pick("ann", 0.0, beyond=False) == 9


def test_a_relays_share_is_asked_for_outside_though_no_reader_waits_for_it() -> None:
    p = picker(20)
    p.set_share((1, 3))
    p.add_peer("far", of([9, 10]), seed=False, outside=True)
    p.set_reader("r", 0, 0.0)
    assert p.promising(0.0, beyond=False) == ["far"]
    assert [p.pick("far", 0.0, beyond=False) for _ in range(2)] == [10, None]


def test_the_window_grows_with_its_readers_rate_and_with_what_pieces_take() -> None:
    p = Picker(500, 0, rng=random.Random(1))
    p.add_peer("ann", bitset.full(500), seed=False)
    p.set_reader("r", 0, 0.0)
    now = 0.0
    for _ in range(100):
        index = p.pick("ann", now)
        assert index is not None
        now += 0.2
        p.arrived("ann", index, now)
        p.verified(index)
        p.set_reader("r", bitset.lowest(p.missing), now)
    first = bitset.lowest(p.missing)
    assert p.is_near(first + 15, now)
    assert not p.is_near(first + 16, now)
    for _ in range(3):
        now += 0.5
        p.set_reader("r", first := first + 50, now)
    assert p.is_near(first + 63, now)
    assert not p.is_near(first + 64, now)


def test_who_is_no_relay_asks_nothing_outside_while_its_zone_may_have_it() -> None:
    p = picker(9)
    p.add_peer("far", bitset.full(9), seed=False, outside=True)
    assert p.pick("far", 0.0) is None


def test_the_readers_next_piece_is_asked_of_whoever_is_quickest_and_has_room() -> None:
    p = picker(6)
    p.set_reader("r", 0, 0.0)
    for name, have in (("ann", 0b000110), ("bob", 0b000110), ("cyd", 0b100010)):
        p.add_peer(name, have, seed=False)
    ease = {"ann": 0.3, "bob": 0.1, "cyd": None}
    assert p.pick_for_reader(0.0, ease.get) == ("bob", 1)
    ease["bob"] = 0.5
    assert p.pick_for_reader(0.0, ease.get) == ("ann", 2)
    assert p.pick_for_reader(0.0, ease.get) is None
    assert p.asked_of("bob") == {1}


def test_a_late_piece_is_asked_for_elsewhere_once_more_and_only_after_patience() -> None:
    p = picker(1)
    for name in NAMES:
        p.add_peer(name, 1, seed=False)
    assert p.pick("ann", 10.0) == 0
    assert p.pick("bob", 10.0 + PATIENCE) is None
    assert p.pick("bob", 10.01 + PATIENCE) == 0
    assert p.pick("cyd", 99.0) is None
    assert p.pick("ann", 99.0) is None


@pytest.mark.parametrize("took, bound", [(0.6, MAX_PATIENCE), (3.0, pytest.approx(9.0, rel=0.05))])
def test_patience_grows_with_what_pieces_took_and_has_a_bound(took: float, bound: float) -> None:
    p = picker(40)
    p.add_peer("ann", bitset.full(40), seed=False)
    assert p.patience() == PATIENCE
    known = [p.patience()]
    for _ in range(40):
        index = p.pick("ann", 0.0)
        assert index is not None
        p.arrived("ann", index, took)
        p.verified(index)
        known.append(p.patience())
    assert known == sorted(known)
    assert known[-1] == bound


def test_nobody_else_is_asked_for_a_piece_that_is_being_checked() -> None:
    p = picker(1)
    p.add_peer("ann", 1, seed=False)
    p.add_peer("bob", 1, seed=False)
    p.pick("ann", 0.0)
    assert p.arrived("ann", 0, 1.5) == 1.5
    p.remove_peer("ann")
    assert p.pick("bob", 100.0) is None
    p.failed("ann", 0)
    assert p.pick("bob", 100.0) == 0


def test_what_is_still_due_from_others_is_named_when_a_piece_is_verified() -> None:
    p = picker(2)
    for name in ("ann", "bob"):
        p.add_peer(name, 1, seed=False)
    p.pick("ann", 0.0)
    p.pick("bob", 9.0)
    p.arrived("bob", 0, 9.1)
    assert p.verified(0) == ["ann"]
    assert not p.is_asked("ann", 0)
    assert p.verified(0) == []


def test_a_seed_is_asked_for_what_it_does_not_show_when_a_reader_waits_for_it() -> None:
    p = picker(8)
    p.add_peer("seed", 0, seed=True)
    p.set_reader("r", 3, 0.0)
    assert p.pick("seed", 5.0) is None
    assert p.pick("seed", 5.0 + PATIENCE) is None
    assert p.pick("seed", 5.01 + PATIENCE) == 3
    assert p.pick("seed", 99.0) is None


def test_a_seed_is_asked_for_what_it_does_not_show_when_another_peer_takes_too_long() -> None:
    p = picker(2)
    p.add_peer("ann", 0b11, seed=False)
    p.add_peer("seed", 0, seed=True)
    assert {p.pick("ann", 10.0), p.pick("ann", 10.0)} == {0, 1}
    assert p.pick("seed", 10.0 + MAX_PATIENCE) is None
    assert p.pick("seed", 10.1 + MAX_PATIENCE) in {0, 1}
    assert p.pick("seed", 10.1 + MAX_PATIENCE) is None


def test_a_seed_is_asked_for_what_it_does_not_show_when_nothing_else_goes_on() -> None:
    p = picker(8, have=[0])
    p.add_peer("seed", 0, seed=True)
    assert p.pick("seed", 5.0) is None
    assert p.pick("seed", 5.01 + PATIENCE) == 1


def test_only_a_seed_is_asked_for_what_it_does_not_show() -> None:
    p = picker(8)
    p.add_peer("ann", 0, seed=False)
    p.set_reader("r", 0, 0.0)
    assert [p.pick("ann", t) for t in (0.0, 10.0, 100.0)] == [None, None, None]


def test_a_seed_that_will_not_send_a_piece_is_not_asked_again_until_it_shows_it() -> None:
    p = picker(1)
    p.add_peer("seed", 1, seed=True)
    assert p.pick("seed", 0.0) == 0
    p.rejected("seed", 0)
    assert [p.pick("seed", t) for t in (0.1, 10.0, 100.0)] == [None, None, None]
    p.peer_has("seed", 0)
    assert p.pick("seed", 100.0) == 0


@pytest.mark.parametrize("loss", ["remove", "fail", "reject"])
def test_what_a_peer_fails_to_give_can_be_asked_of_another_at_once(loss: str) -> None:
    p = picker(3)
    for name in ("ann", "bob"):
        p.add_peer(name, bitset.full(3), seed=False)
    asked = {p.pick("ann", 0.0) for _ in range(3)}
    assert asked == {0, 1, 2}
    assert p.pick("bob", 0.0) is None
    match loss:
        case "remove":
            p.remove_peer("ann")
        case "fail":
            for index in range(3):
                p.failed("ann", index)
        case _:
            for index in range(3):
                p.rejected("ann", index)
    assert {p.pick("bob", 0.0) for _ in range(3)} == {0, 1, 2}


def test_what_is_here_is_never_picked() -> None:
    p = picker(5, have=[0, 1, 3])
    p.add_peer("ann", bitset.full(5), seed=True)
    assert {p.pick("ann", 0.0) for _ in range(5)} == {2, 4, None}


# -- against a model


@dataclass
class ModelPeer:
    bits: set[int]
    seed: bool
    due: dict[int, float] = field(default_factory=dict)
    """Asked for and not come, with the time of asking."""


class PickerMachine(RuleBasedStateMachine):
    """Random events; the model says after each pick whether it was allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.peers: dict[str, ModelPeer] = {}
        self.checking: set[tuple[str, int]] = set()
        self.readers: dict[str, tuple[int, int]] = {}
        """What each needs next, and where it ends, in the order of their turns."""

    @initialize(count=st.integers(1, 20), have=st.sets(st.integers(0, 19)), seed=st.integers(0, 99))
    def begin(self, count: int, have: set[int], seed: int) -> None:
        self.count = count
        have = {index for index in have if index < count}
        self.missing = set(range(count)) - have
        self.picker = Picker(count, of(have), rng=random.Random(seed), window=(3, 3))

    # What the outside does.

    @rule(name=st.sampled_from(NAMES), bits=st.sets(st.integers(0, 19)), seed=st.booleans())
    def add_peer(self, name: str, bits: set[int], seed: bool) -> None:
        bits = {index for index in bits if index < self.count}
        known = self.peers.setdefault(name, ModelPeer(bits, seed))
        known.bits, known.seed = bits, seed
        self.picker.add_peer(name, of(bits), seed=seed)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def remove_peer(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.peers)))
        del self.peers[name]
        self.picker.remove_peer(name)

    @rule()
    def remove_a_stranger(self) -> None:
        self.picker.remove_peer("nobody")

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def peer_has(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.peers)))
        index = data.draw(st.integers(0, self.count - 1))
        self.peers[name].bits.add(index)
        self.picker.peer_has(name, index)

    @rule(
        reader=st.sampled_from("xy"),
        position=st.integers(0, 22),
        stop=st.integers(0, 25) | st.none(),
    )
    def set_reader(self, reader: str, position: int, stop: int | None) -> None:
        self.readers[reader] = position, self.count if stop is None else stop
        self.picker.set_reader(reader, position, self.now, stop)

    @rule(reader=st.sampled_from("xy"))
    def remove_reader(self, reader: str) -> None:
        self.readers.pop(reader, None)
        self.picker.remove_reader(reader)

    @rule(seconds=st.sampled_from([0.01, 0.2, 0.3, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # What becomes of requests.

    def draw_due(self, data: st.DataObject) -> tuple[str, int]:
        due = sorted((name, index) for name, peer in self.peers.items() for index in peer.due)
        return data.draw(st.sampled_from(due))

    @precondition(lambda self: any(peer.due for peer in self.peers.values()))
    @rule(data=st.data())
    def a_piece_arrives(self, data: st.DataObject) -> None:
        name, index = self.draw_due(data)
        took = self.picker.arrived(name, index, self.now)
        assert took == self.now - self.peers[name].due.pop(index)
        self.checking.add((name, index))

    @precondition(lambda self: any(peer.due for peer in self.peers.values()))
    @rule(data=st.data(), rejected=st.booleans())
    def a_piece_does_not_come(self, data: st.DataObject, rejected: bool) -> None:
        name, index = self.draw_due(data)
        del self.peers[name].due[index]
        if rejected:
            self.picker.rejected(name, index)
            self.peers[name].bits.discard(index)
        else:
            self.picker.failed(name, index)

    @precondition(lambda self: self.checking)
    @rule(data=st.data(), right=st.booleans())
    def a_piece_is_checked(self, data: st.DataObject, right: bool) -> None:
        name, index = data.draw(st.sampled_from(sorted(self.checking)))
        self.checking.discard((name, index))
        if not right:
            self.picker.failed(name, index)
            if name in self.peers:
                self.peers[name].due.pop(index, None)
            return
        others = [peer for peer in self.peers if index in self.peers[peer].due]
        assert sorted(self.picker.verified(index)) == sorted(others)
        for other in others:
            del self.peers[other].due[index]
        self.missing.discard(index)

    # What the picker says.

    @rule()
    def pick_for_reader(self) -> None:
        found = self.picker.pick_for_reader(self.now, lambda _: 0.1)
        held = set[int]().union(*(peer.bits for peer in self.peers.values()))
        for reader, span in self.readers.items():
            able = [index for index in self.window(*span) & held if not self.copies(index)]
            if able:
                assert found is not None
                name, index = found
                assert index == min(able)
                assert index in self.peers[name].bits
                self.peers[name].due[index] = self.now
                self.readers[reader] = self.readers.pop(reader)
                return
        assert found is None

    def copies(self, index: int) -> int:
        due = {name for name, peer in self.peers.items() if index in peer.due}
        return len(due | {name for name, i in self.checking if i == index})

    def window(self, position: int, stop: int) -> set[int]:
        ahead = [index for index in self.missing if position <= index < stop]
        return {index for index in ahead if index < min(ahead) + 3}

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def pick(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.peers)))
        peer = self.peers[name]
        asked_before = {index for index in self.missing if self.copies(index)}
        fresh = (peer.bits & self.missing) - asked_before
        promising = name in self.picker.promising(self.now)
        index = self.picker.pick(name, self.now)
        assert promising or index is None
        if index is None:
            assert not fresh
            return
        assert index in self.missing
        assert index not in peer.due
        assert index in peer.bits or peer.seed
        assert self.copies(index) < MAX_COPIES
        assert all(index != checked for _, checked in self.checking)
        if fresh:
            self.judge_fresh(index, fresh, seed=peer.seed)
        elif index in asked_before:
            age = self.now - min(p.due[index] for p in self.peers.values() if index in p.due)
            patience = self.picker.patience()
            assert age > (patience if index in peer.bits else max(patience, MAX_PATIENCE))
        else:
            assert index not in peer.bits
            assert not peer.due
        peer.due[index] = self.now

    def judge_fresh(self, index: int, fresh: set[int], *, seed: bool) -> None:
        assert index in fresh
        for reader, span in self.readers.items():
            if wanted := fresh & self.window(*span):
                fresh = wanted
                self.readers[reader] = self.readers.pop(reader)
                break
        assert index in fresh
        if seed:
            assert index == min(fresh)
            return
        holders = {i: sum(i in peer.bits for peer in self.peers.values()) for i in fresh}
        assert holders[index] == min(holders.values())

    @invariant()
    def requests_agree(self) -> None:
        for name in NAMES:
            due = self.peers[name].due if name in self.peers else {}
            assert self.picker.asked_of(name) == frozenset(due)
            assert all(self.picker.is_asked(name, index) for index in due)
        if not hasattr(self, "missing"):
            return
        assert self.picker.missing == of(self.missing)

    @invariant()
    def nothing_is_noted_as_asked_without_a_reason(self) -> None:
        if not hasattr(self, "count"):
            return
        reasons = {(name, index) for name, peer in self.peers.items() for index in peer.due}
        noted = {(name, index) for index, asked in self.picker._asked.items() for name in asked}
        assert reasons <= noted <= reasons | self.checking
        assert self.picker._free == of(self.missing - self.picker._asked.keys())


TestPickerMachine = PickerMachine.TestCase
TestPickerMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


# -- the whole way


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 60),
    holdings=st.lists(st.sets(st.integers(0, 59)), max_size=4),
    reader=st.integers(0, 59) | st.none(),
    seed=st.integers(0, 1 << 16),
)
def test_every_piece_is_fetched_once_all_have_holders(
    count: int, holdings: list[set[int]], reader: int | None, seed: int
) -> None:
    """Some requests are rejected, fail or time out; the seed shows nothing, but is honest."""
    rng = random.Random(seed)
    p = Picker(count, 0, rng=rng, window=(5, 5))
    p.add_peer("seed", 0, seed=True)
    names = ["seed"]
    for number, bits in enumerate(holdings):
        names.append(f"peer-{number}")
        p.add_peer(names[-1], of(index for index in bits if index < count), seed=False)
    if reader is not None:
        p.set_reader("r", reader, 0.0)
    now = 0.0
    for _ in range(200 * count):
        if not p.missing:
            break
        now += 0.2
        for name in names:
            for late in p.asked_of(name):
                if now - p._asked[late][name] > 4.0:
                    p.failed(name, late)
            index = p.pick(name, now)
            if index is None:
                continue
            fate = 1.0 if name == "seed" else rng.random()
            if fate < 0.1:
                p.rejected(name, index)
            elif fate < 0.2:
                p.failed(name, index)
            elif fate > 0.3:
                p.arrived(name, index, now)
                p.verified(index)
    assert p.missing == 0
