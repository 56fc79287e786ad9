# SPDX-License-Identifier: Apache-2.0
"""The plan of faults: the same for the same seed, and harmless to what one loss must not harm."""

from __future__ import annotations

from itertools import islice

from shoal.chaos.plan import Fault, Kind, faults
from shoal.cluster.layout import Shape

SHAPE = Shape(proxies=2, origins=4, trackers=2, build_indexes=2, agents=3)


def first(count: int, seed: int = 1, shape: Shape = SHAPE) -> list[Fault]:
    return list(islice(faults(seed, shape), count))


def test_a_seed_gives_the_same_faults_each_time_and_another_one_gives_others() -> None:
    assert first(50) == first(50)
    assert first(50) != first(50, seed=2)


def test_every_kind_comes_before_any_comes_by_weight() -> None:
    assert {fault.kind for fault in first(20)} == set(Kind)


def test_a_target_is_a_service_of_the_cluster_or_nobody_in_particular() -> None:
    for fault in first(200):
        if fault.kind in {Kind.BACKEND, Kind.BLACKOUT}:
            assert not fault.target
        else:
            assert fault.target in SHAPE.names()


def test_only_services_that_can_lose_their_disk_without_loss_are_wiped() -> None:
    wiped = {f.target.rpartition("-")[0] for f in first(500) if f.kind is Kind.WIPE}
    assert wiped == {"origin", "proxy", "agent"}


def test_roles_that_the_cluster_has_not_are_left_out() -> None:
    targets = {fault.target for fault in first(200, shape=Shape(proxies=0, agents=0))}
    assert not any(target.startswith(("proxy", "agent")) for target in targets)


def test_every_fault_and_every_pause_has_a_bound() -> None:
    for fault in islice(faults(3, SHAPE, shortest=0.5, longest=2.0), 200):
        assert 0.5 <= fault.seconds <= 2.0
        assert 0.25 <= fault.pause <= 1.0
