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
        ([], "exactly one of hosts, dns and srv must be set; none of them is set"),
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


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "exactly one of hosts, dns and srv must be set; none"),
        ({"hosts": ["a:1"], "dns": "o:1"}, "hosts and dns are set"),
        ({"dns": "o:1", "srv": "_o._tcp.x"}, "dns and srv are set"),
        ({"dns": "origins.example"}, "host:port"),
        ({"srv": ""}, "at least 1 character"),
        ({"hosts": ["a:1"], "nameservers": ["127.0.0.1:53"]}, "nameservers is for dns and srv"),
        ({"dns": "o:1", "nameservers": ["ns.example:53"]}, "given by its IP address"),
    ],
)
def test_a_list_has_exactly_one_source(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HostsConfig.model_validate(config)


@pytest.mark.parametrize(
    "config", [{"dns": "o:1"}, {"srv": "_o._tcp.x"}, {"dns": "o:1", "nameservers": ["[::1]:53"]}]
)
def test_a_list_from_the_dns_moves(config: dict[str, object]) -> None:
    assert HostsConfig.model_validate(config).moves
    assert not HostsConfig(hosts=["a:1"]).moves


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_is_above_nothing(weight: float) -> None:
    with pytest.raises(ValidationError):
        OriginsConfig(hosts=["a:1"], weights={"a:1": weight})


def test_weights_are_of_members() -> None:
    with pytest.raises(ValidationError, match="weights names what hosts does not list: b:1"):
        OriginsConfig(hosts=["a:1"], weights={"b:1": 2.0})
    assert OriginsConfig(dns="o:1", weights={"10.0.0.1:1": 2.0}).weights == {"10.0.0.1:1": 2.0}


def test_a_config_that_is_dumped_can_be_read_back() -> None:
    for config in (OriginsConfig(hosts=["a:1"]), OriginsConfig(srv="_o._tcp.x")):
        assert OriginsConfig.model_validate_json(config.model_dump_json()) == config
