# SPDX-License-Identifier: Apache-2.0
"""What earlier looks found says nothing once something happened, until a later one has told."""

from __future__ import annotations

import pytest

from shoal.origin.doubts import Doubts


def test_a_look_settles_what_arose_before_it_began() -> None:
    doubts = Doubts()
    doubts.arose(None, "start")
    begun = doubts.begun()
    doubts.arose({"a:1"}, "a was away")
    doubts.settled(None, begun)
    assert doubts.why() == ["a was away"]
    doubts.settled(None, doubts.begun())
    assert doubts.why() == []


def test_the_same_doubt_again_needs_a_look_that_began_after_it() -> None:
    doubts = Doubts()
    doubts.arose(None, "members left")
    begun = doubts.begun()
    doubts.arose(None, "members left")
    doubts.settled(None, begun)
    assert doubts.why() == ["members left"]


@pytest.mark.parametrize(
    "doubted, looked, settled",
    [
        (None, None, True),
        (None, {"a", "b"}, False),
        ({"a"}, None, True),
        ({"a"}, {"a", "b"}, True),
        ({"a", "b"}, {"a"}, False),
    ],
)
def test_a_look_at_some_members_settles_what_is_about_them_alone(
    doubted: set[str] | None, looked: set[str] | None, settled: bool
) -> None:
    doubts = Doubts()
    doubts.arose(doubted, "why")
    doubts.settled(None if looked is None else frozenset(looked), doubts.begun())
    assert (doubts.why() == []) == settled


def test_what_lasts_is_settled_by_no_look() -> None:
    doubts = Doubts()
    with doubts.lasting("the others are not told yet"):
        doubts.settled(None, doubts.begun())
        assert doubts.why() == ["the others are not told yet"]
    assert doubts.why() == []
