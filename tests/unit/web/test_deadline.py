# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from shoal.web.deadline import HEADER, LONGEST, Deadline


def test_a_deadline_counts_down_to_zero() -> None:
    deadline = Deadline.after(2.5, now=100.0)
    assert deadline.remaining(now=101.0) == 1.5
    assert deadline.remaining(now=200.0) == 0.0
    assert not Deadline.after(60).expired
    assert Deadline.after(-1).expired


def test_the_header_carries_what_is_left_to_the_next_service() -> None:
    sent = Deadline.after(2.5, now=100.0).header_value(now=101.0)
    assert sent == "1500"
    assert Deadline.from_headers({HEADER: sent}, 60, now=7.0) == Deadline(8.5)


@pytest.mark.parametrize("text", ["", "-5", "1.5", "soon", "٣", "9" * 50])
def test_a_header_that_cannot_be_read_means_the_default(text: str) -> None:
    assert Deadline.from_headers({HEADER: text}, 60, now=0.0) == Deadline(60)


def test_nobody_may_ask_for_ever() -> None:
    assert Deadline.from_headers({HEADER: "999999999999"}, 60, now=0.0) == Deadline(LONGEST)


def test_a_step_may_take_less_than_the_whole() -> None:
    deadline = Deadline(10.0)
    assert deadline.at_most(3, now=0.0) == Deadline(3.0)
    assert deadline.at_most(30, now=0.0) == deadline


def test_a_transfer_gets_time_for_its_bytes() -> None:
    assert Deadline(10.0).with_transfer(100, slowest=50) == Deadline(12.0)
