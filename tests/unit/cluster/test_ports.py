# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket

import pytest

from shoal.cluster.layout import BLOCK, HOST
from shoal.cluster.ports import FIRST, LAST, PortsTaken, reserve


def test_two_clusters_never_share_a_block() -> None:
    with reserve(BLOCK) as one, reserve(BLOCK) as other:
        assert abs(one.first - other.first) >= BLOCK
        assert all(FIRST <= ports.first <= LAST - BLOCK for ports in (one, other))
        assert all((ports.first - FIRST) % BLOCK == 0 for ports in (one, other))


def test_a_reservation_of_two_blocks_keeps_others_out_of_both() -> None:
    with reserve(2 * BLOCK) as wide:
        for base in (wide.first, wide.first + BLOCK):
            with pytest.raises(PortsTaken, match=str(base)):
                reserve(BLOCK, base)


def test_a_block_is_free_again_after_its_cluster() -> None:
    with reserve(BLOCK) as ports:
        first = ports.first
    with reserve(BLOCK, first) as again:
        assert again.first == first


@pytest.mark.parametrize("base", [-1, 0, 65534, 70_000])
def test_a_base_from_which_the_ports_do_not_fit_is_named(base: int) -> None:
    with pytest.raises(PortsTaken, match=f"port base {base}: {BLOCK} ports"):
        reserve(BLOCK, base)


def test_a_taken_port_of_the_block_is_named() -> None:
    with reserve(BLOCK) as ports:
        first = ports.first
    with socket.create_server((HOST, first + 7)):
        with pytest.raises(PortsTaken, match=f"{HOST}:{first + 7} is in use"):
            reserve(BLOCK, first)
        with reserve(BLOCK) as other:
            assert other.first != first


def test_a_failed_reservation_keeps_no_port() -> None:
    with reserve(BLOCK) as ports:
        first = ports.first
    with socket.create_server((HOST, first + 1)), pytest.raises(PortsTaken):
        reserve(BLOCK, first)
    reserve(BLOCK, first).close()
