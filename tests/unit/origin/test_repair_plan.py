# SPDX-License-Identifier: Apache-2.0
"""What holders of a blob decide about it, each by himself, from the same answers."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from hypothesis import given
from hypothesis import strategies as st

from shoal.origin.repair_plan import Plan, Said, may_go, plan

RING = ["a", "b", "c", "d", "e"]
REPLICAS = 3
TAKEOVER = 60.0


def decide(
    name: str, whole: AbstractSet[str], absent: AbstractSet[str], lacking_for: float = 0.0
) -> Plan:
    others = frozenset(whole) - {name}
    said = Said(others, frozenset(absent) - {name})
    return plan(name, RING, REPLICAS, said, lacking_for=lacking_for, takeover=TAKEOVER)


@st.composite
def answers(draw: st.DrawFn) -> tuple[set[str], set[str]]:
    """Who has a blob and who says that he has not; the others could not be asked."""
    said = {host: draw(st.sampled_from(["whole", "absent", "silent"])) for host in RING}
    whole = {host for host, it in said.items() if it == "whole"}
    return whole, {host for host, it in said.items() if it == "absent"}


@given(answers())
def test_one_holder_alone_sends_and_the_others_wait_their_turn(
    said: tuple[set[str], set[str]],
) -> None:
    whole, absent = said
    plans = {host: decide(host, whole, absent) for host in whole}
    senders = [host for host, it in plans.items() if it.send]
    if whole and absent & set(RING[:REPLICAS]):
        assert senders == [min(whole, key=RING.index)]
        waits = [plans[host].wait for host in sorted(whole, key=RING.index)[1:]]
        assert waits == [TAKEOVER * (n + 1) for n in range(len(waits))]
    else:
        assert senders == []


@given(answers())
def test_nobody_calls_a_copy_spare_unless_every_owner_is_known_to_have_the_blob(
    said: tuple[set[str], set[str]],
) -> None:
    whole, absent = said
    for host in whole:
        it = decide(host, whole, absent)
        if it.spare:
            assert host not in RING[:REPLICAS]
            assert set(RING[:REPLICAS]) <= whole


@given(answers(), st.floats(0, 1e6))
def test_what_is_sent_goes_to_owners_that_said_that_they_lack_it(
    said: tuple[set[str], set[str]], lacking_for: float
) -> None:
    whole, absent = said
    for host in whole:
        it = decide(host, whole, absent, lacking_for)
        assert set(it.lacking) <= absent & set(RING[:REPLICAS])
        assert not it.send or it.lacking


def test_another_holder_acts_when_the_first_one_has_not_for_a_while() -> None:
    assert decide("b", {"a", "b"}, {"c"}, 59.0) == Plan(("c",), wait=1.0)
    assert decide("b", {"a", "b"}, {"c"}, 60.0) == Plan(("c",), send=True)


def test_a_host_that_is_no_member_keeps_what_it_has() -> None:
    assert not decide("gone", {"a", "b", "c"}, set()).spare


def test_a_spare_copy_goes_when_neither_it_nor_the_ring_has_moved_for_the_grace_time() -> None:
    assert may_go(last_used=0.0, changed_at=10.0, now=110.0, grace=100.0)
    assert not may_go(last_used=0.0, changed_at=11.0, now=110.0, grace=100.0)
    assert not may_go(last_used=11.0, changed_at=0.0, now=110.0, grace=100.0)
