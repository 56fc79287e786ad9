# SPDX-License-Identifier: Apache-2.0
"""Memory for pieces: bounded, reused, and always to be had when none is out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.swarm.buffers import Buffers

LIMIT = 1 << 12


def capacity(view: memoryview) -> int:
    assert isinstance(view.obj, bytearray)
    return len(view.obj)


@given(st.integers(1, 5000))
def test_memory_has_exactly_the_length_asked_for(length: int) -> None:
    view = Buffers(LIMIT).take(length)
    assert view is not None
    assert len(view) == length
    assert not view.readonly
    assert length <= capacity(view) < 2 * length


def test_memory_that_came_back_is_handed_out_again() -> None:
    buffers = Buffers(LIMIT)
    first = buffers.take(1000)
    assert first is not None
    memory = first.obj
    buffers.give_back(first)
    again = buffers.take(900)
    assert again is not None
    assert again.obj is memory


def test_nobody_can_use_a_view_after_it_was_given_back() -> None:
    buffers = Buffers(LIMIT)
    view = buffers.take(10)
    assert view is not None
    buffers.give_back(view)
    with pytest.raises(ValueError, match="released"):
        view[0] = 1


def test_a_single_buffer_is_to_be_had_even_beyond_the_limit() -> None:
    buffers = Buffers(LIMIT)
    large = buffers.take(10 * LIMIT)
    assert large is not None
    assert buffers.take(1) is None
    buffers.give_back(large)
    assert buffers.take(1) is not None


def test_memory_from_elsewhere_is_not_taken_in() -> None:
    with pytest.raises(TypeError, match="not memory of this pool"):
        Buffers(LIMIT).give_back(memoryview(b"abc"))


def test_trim_lets_unused_memory_go() -> None:
    buffers = Buffers(LIMIT)
    view = buffers.take(1000)
    assert view is not None
    memory = view.obj
    buffers.give_back(view)
    buffers.trim()
    fresh = buffers.take(1000)
    assert fresh is not None
    assert fresh.obj is not memory


class BuffersMachine(RuleBasedStateMachine):
    """Takes and gives back at random; no two views share memory, and the bound holds."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers = Buffers(LIMIT)
        self.out: list[memoryview] = []

    @rule(length=st.integers(1, 2 * LIMIT))
    def take(self, length: int) -> None:
        used = sum(map(capacity, self.out))
        view = self.buffers.take(length)
        if view is None:
            needed = 1 << (length - 1).bit_length()
            assert self.out
            assert used + needed > LIMIT
        else:
            self.out.append(view)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.buffers.give_back(self.out.pop(data.draw(st.integers(0, len(self.out) - 1))))

    @rule()
    def trim(self) -> None:
        self.buffers.trim()

    @invariant()
    def views_are_apart(self) -> None:
        assert len({id(view.obj) for view in self.out}) == len(self.out)

    @invariant()
    def the_bound_holds(self) -> None:
        assert len(self.out) <= 1 or sum(map(capacity, self.out)) <= LIMIT


TestBuffersMachine = BuffersMachine.TestCase
TestBuffersMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
