# SPDX-License-Identifier: Apache-2.0
"""Lists of hosts, and the ring's numbers, are checked at the start."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shoal.ring.config import HostsConfig, OriginsConfig


def test_three_replicas_and_a_quorum_of_two_by_default() -> None:
    config = OriginsConfig(hosts=["a:1", "b:1", "c:1"])
    assert (config.replicas, config.write_quorum) == (3, 2)


@pytest.mark.parametrize(
    "hosts, message",
    [
        ([], "at least 1 item"),
        (["a"], "host:port"),
        (["a:1", "b:1", "a:1"], "listed more than once: a:1"),
    ],
)
def test_a_list_of_hosts_must_make_sense(hosts: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HostsConfig(hosts=hosts)


@pytest.mark.parametrize("replicas, quorum", [(2, 3), (0, 0), (3, 0)])
def test_the_quorum_lies_between_one_and_the_replicas(replicas: int, quorum: int) -> None:
    with pytest.raises(ValidationError):
        OriginsConfig(hosts=["a:1"], replicas=replicas, write_quorum=quorum)
