# SPDX-License-Identifier: Apache-2.0
"""Laws of rendezvous hashing."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.ring.rendezvous import owners

digests = st.binary(max_size=8).map(Digest.of)
members = st.lists(
    st.integers(0, 999).map(lambda n: f"origin-{n}:5002"), min_size=1, max_size=12, unique=True
)


def blobs(count: int) -> list[Digest]:
    return [Digest("sha256", hashlib.sha256(str(n).encode()).hexdigest()) for n in range(count)]


@given(digests, members, st.randoms(use_true_random=False))
def test_order_of_the_member_list_does_not_matter(
    digest: Digest, hosts: list[str], rng: random.Random
) -> None:
    shuffled = rng.sample(hosts, len(hosts))
    assert owners(digest, hosts) == owners(digest, shuffled)


@given(digests, members)
def test_every_member_is_listed_once(digest: Digest, hosts: list[str]) -> None:
    assert sorted(owners(digest, hosts + hosts)) == sorted(hosts)


@given(digests, members, st.integers(0, 15))
def test_count_cuts_the_list(digest: Digest, hosts: list[str], count: int) -> None:
    assert owners(digest, hosts, count) == owners(digest, hosts)[:count]


@given(digests, members)
def test_a_digest_and_its_text_have_the_same_owners(digest: Digest, hosts: list[str]) -> None:
    assert owners(digest, hosts) == owners(str(digest), hosts)


@given(digests, members, st.data())
def test_a_member_that_leaves_does_not_change_the_order_of_the_others(
    digest: Digest, hosts: list[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(hosts))
    rest = [host for host in hosts if host != gone]
    assert owners(digest, rest) == [host for host in owners(digest, hosts) if host != gone]


@given(digests, members)
def test_a_new_member_takes_the_place_of_at_most_one_owner(
    digest: Digest, hosts: list[str]
) -> None:
    before = set(owners(digest, hosts, 3))
    after = set(owners(digest, [*hosts, "new:5002"], 3))
    assert after - before <= {"new:5002"}
    assert len(before - after) <= 1


@given(digests, members, st.data())
def test_a_heavier_member_never_falls_in_the_order(
    digest: Digest, hosts: list[str], data: st.DataObject
) -> None:
    heavy = data.draw(st.sampled_from(hosts))
    factor = data.draw(st.floats(1.0, 100.0))
    before = owners(digest, hosts).index(heavy)
    assert owners(digest, hosts, weights={heavy: factor}).index(heavy) <= before


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9999), min_size=3, max_size=8, unique=True))
def test_blobs_spread_evenly(numbers: list[int]) -> None:
    hosts = [f"10.0.0.{n}:5002" for n in numbers]
    total = 3000
    first = Counter(owners(digest, hosts, 1)[0] for digest in blobs(total))
    fair = total / len(hosts)
    # Five standard deviations of the binomial distribution.
    slack = 5 * (fair * (1 - 1 / len(hosts))) ** 0.5
    assert all(abs(first[host] - fair) < slack for host in hosts)


def test_second_places_spread_evenly_when_a_member_leaves() -> None:
    hosts = ["a:1", "b:1", "c:1", "d:1"]
    of_a = [digest for digest in blobs(4000) if owners(digest, hosts, 1) == ["a:1"]]
    heirs = Counter(owners(digest, hosts[1:], 1)[0] for digest in of_a)
    assert all(0.8 < heirs[host] / (len(of_a) / 3) < 1.2 for host in hosts[1:])


def test_weights_give_shares_in_proportion() -> None:
    hosts = ["a:1", "b:1", "c:1"]
    first = Counter(owners(digest, hosts, 1, weights={"a:1": 2.0})[0] for digest in blobs(4000))
    assert 0.9 < first["a:1"] / 2000 < 1.1
    assert 0.85 < first["b:1"] / 1000 < 1.15


@pytest.mark.parametrize("weight", [0, -1, float("nan")])
def test_a_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight of a:1 must be above 0"):
        owners("x", ["a:1"], weights={"a:1": weight})


def test_placement_is_a_storage_format() -> None:
    """These orders must never change: blobs of existing rings lie where they say."""
    hosts = [f"origin-{n}:5002" for n in range(5)]
    digest = Digest.of(b"shoal")
    assert owners(digest, hosts) == [f"origin-{n}:5002" for n in (3, 2, 1, 0, 4)]
