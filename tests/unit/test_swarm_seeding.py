# SPDX-License-Identifier: Apache-2.0
"""What seeds show to whom: everything once before anything twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.swarm import bits as bitset
from shoal.swarm.seeding import Seeding

NAMES = ["ann", "bob", "cyd"]


def listed(bits: int) -> list[int]:
    return list(bitset.indices(bits))


# -- in examples


def test_pieces_are_shown_in_order() -> None:
    seeding = Seeding(10, credit=4)
    assert listed(seeding.join("ann", 0)) == [0, 1, 2, 3]
    assert listed(seeding.join("bob", 0)) == [4, 5, 6, 7]


def test_one_piece_more_is_shown_for_each_that_was_shown_and_has_come() -> None:
    seeding = Seeding(10, credit=2)
    assert listed(seeding.join("ann", 0)) == [0, 1]
    assert listed(seeding.has("ann", 1)) == [2]
    assert listed(seeding.has("ann", 9)) == []
    assert listed(seeding.has("ann", 0)) == [3]


def test_what_a_leecher_has_when_it_comes_is_not_shown_to_anyone() -> None:
    seeding = Seeding(6, credit=3)
    assert listed(seeding.join("ann", 0b000101)) == [1, 3, 4]
    assert listed(seeding.join("bob", 0)) == [5]


def test_nothing_is_shown_twice_unasked() -> None:
    seeding = Seeding(4, credit=8)
    assert listed(seeding.join("ann", 0)) == [0, 1, 2, 3]
    assert listed(seeding.join("bob", 0)) == []


def test_what_went_with_a_leecher_is_shown_to_the_next() -> None:
    seeding = Seeding(4, credit=8)
    seeding.join("ann", 0)
    seeding.has("ann", 0)
    seeding.has("ann", 1)
    seeding.join("bob", 0b0001)
    seeding.leave("ann")
    assert listed(seeding.join("cyd", 0)) == [1, 2, 3]


def test_a_leecher_that_asks_unshown_earns_what_others_have() -> None:
    seeding = Seeding(8, credit=3)
    seeding.join("ann", bitset.full(8))
    assert listed(seeding.join("bob", 0)) == []
    assert listed(seeding.asked("bob", 5)) == [0, 1]
    assert listed(seeding.asked("bob", 0)) == []
    assert listed(seeding.has("bob", 0)) == [2]
    assert listed(seeding.has("bob", 1)) == []


def test_seeds_begin_with_their_own_share_and_then_help_from_the_far_end() -> None:
    first = Seeding(8, rank=0, seeds=2, credit=100)
    second = Seeding(8, rank=1, seeds=2, credit=2)
    assert listed(second.join("bob", 0)) == [1, 3]
    assert listed(second.has("bob", 1)) == [5]
    assert listed(second.has("bob", 3)) == [7]
    assert listed(second.has("bob", 5)) == [6]
    assert listed(second.has("bob", 7)) == [], "one of the other's at a time"
    assert listed(second.has("bob", 6)) == [4]
    assert listed(first.join("ann", 0)) == [0, 2, 4, 6, 7]


def test_strangers_change_nothing() -> None:
    seeding = Seeding(4, credit=1)
    seeding.leave("nobody")
    assert seeding.has("nobody", 0) == 0
    assert seeding.asked("nobody", 0) == 0
    assert listed(seeding.join("ann", 0)) == [0]


# -- laws


@given(
    count=st.integers(1, 64),
    seeds=st.integers(1, 4),
    leechers=st.integers(1, 5),
    credit=st.integers(1, 8),
    data=st.data(),
)
@settings(deadline=None)
def test_each_piece_leaves_the_seeds_once(
    count: int, seeds: int, leechers: int, credit: int, data: st.DataObject
) -> None:
    """Leechers take what they are shown and pass it to each other at once."""
    seedings = [Seeding(count, rank=rank, seeds=seeds, credit=credit) for rank in range(seeds)]
    shown: list[tuple[int, str, int]] = []

    def note(rank: int, leecher: str, pieces: int) -> None:
        shown.extend((rank, leecher, index) for index in bitset.indices(pieces))

    for rank, seeding in enumerate(seedings):
        for number in range(leechers):
            note(rank, f"l{number}", seeding.join(f"l{number}", 0))
    taken: Counter[int] = Counter()
    while shown:
        rank, leecher, index = shown.pop(data.draw(st.integers(0, len(shown) - 1)))
        taken[index] += 1
        # Its neighbours have it from there; each tells every seed.
        for at, seeding in enumerate(seedings):
            note(at, leecher, seeding.has(leecher, index))
            for number in range(leechers):
                if f"l{number}" != leecher:
                    note(at, f"l{number}", seeding.has(f"l{number}", index))
    assert set(taken) == set(range(count))
    if seeds == 1:
        assert set(taken.values()) == {1}
    else:
        # Two seeds may show one piece at the same time only where they help each other out.
        assert max(taken.values()) <= seeds


class SeedingMachine(RuleBasedStateMachine):
    """Random events at one seed of several; what it shows is checked against plain sets."""

    @initialize(
        count=st.integers(1, 24),
        credit=st.integers(1, 5),
        rank=st.integers(0, 2),
        seeds=st.integers(1, 3),
    )
    def begin(self, count: int, credit: int, rank: int, seeds: int) -> None:
        self.count, self.credit = count, credit
        self.seeding = Seeding(count, rank=rank % seeds, seeds=seeds, credit=credit)
        self.have: dict[str, set[int]] = {}
        self.shown: dict[str, set[int]] = {}
        self.grants: dict[str, int] = {}

    def spread(self) -> set[int]:
        return set().union(*self.have.values(), *self.shown.values())

    def accept(self, name: str, bits: int) -> None:
        """What is newly shown: within the credit, new to it, and others' only when it is earned."""
        fresh = set(bitset.indices(bits))
        assert fresh <= set(range(self.count))
        assert not fresh & self.shown[name]
        assert not fresh & self.have[name]
        again = fresh & self.spread()
        if again:
            assert len(again) <= self.grants[name]
            self.grants[name] -= len(again)
            assert self.spread() | fresh == set(range(self.count))
        self.shown[name] |= fresh
        if fresh:
            assert len(self.shown[name] - self.have[name]) <= self.credit

    @rule(name=st.sampled_from(NAMES), have=st.sets(st.integers(0, 23)))
    def join(self, name: str, have: set[int]) -> None:
        self.have[name] = {index for index in have if index < self.count}
        self.shown[name] = set()
        self.grants[name] = 0
        self.accept(name, self.seeding.join(name, sum(1 << i for i in self.have[name])))

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        self.have.pop(name, None)
        self.shown.pop(name, None)
        self.seeding.leave(name)

    @precondition(lambda self: self.have)
    @rule(data=st.data())
    def has(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.have)))
        index = data.draw(st.integers(0, self.count - 1))
        self.have[name].add(index)
        self.accept(name, self.seeding.has(name, index))

    @precondition(lambda self: self.have)
    @rule(data=st.data())
    def asked(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.have)))
        index = data.draw(st.integers(0, self.count - 1))
        if index not in self.shown[name]:
            self.grants[name] = self.credit
            self.shown[name].add(index)
        self.accept(name, self.seeding.asked(name, index))

    @invariant()
    def every_piece_is_spread_or_waits_to_be(self) -> None:
        if hasattr(self, "have"):
            waiting = set(range(self.count)) - self.spread()
            assert set(bitset.indices(self.seeding._unspread)) == waiting


TestSeedingMachine = SeedingMachine.TestCase
TestSeedingMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
