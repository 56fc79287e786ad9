# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.config import AgentConfig
from shoal.cluster.layout import BLOCK, Layout, LayoutError, Shape, lay_out, merge
from shoal.cluster.roles import ROLES

DATA = Path("/data")
counts = st.integers(min_value=1, max_value=40)


def all_addresses(layout: Layout) -> list[str]:
    return [address for member in layout.members for address in member.addresses()]


@given(st.builds(Shape, counts, counts, counts, counts, counts), st.integers(1024, 40000))
def test_no_address_is_given_twice_and_none_lies_outside_the_block_or_on_a_guard(
    shape: Shape, base: int
) -> None:
    addresses = all_addresses(lay_out(shape, DATA, base))
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    assert len(set(ports)) == len(ports)
    assert all(base < port < base + shape.ports() for port in ports)
    assert all((port - base) % BLOCK for port in ports)
    assert shape.ports() % BLOCK == 0


def test_the_same_shape_at_the_same_base_has_the_same_addresses() -> None:
    assert lay_out(Shape(), DATA, 20000) == lay_out(Shape(), DATA, 20000)


def test_the_default_cluster_fits_one_block() -> None:
    assert Shape().ports() == BLOCK


def test_everyone_knows_every_origin_and_the_services_they_call() -> None:
    layout = lay_out(Shape(trackers=2, build_indexes=2), DATA, 20000)
    origins = [member.config["listen"] for member in layout.of("origin")]
    assert all(member.config["origins"]["hosts"] == origins for member in layout.members)
    trackers = [member.config["listen"] for member in layout.of("tracker")]
    indexes = [member.config["listen"] for member in layout.of("build-index")]
    for agent in layout.of("agent"):
        assert agent.config["tracker"]["hosts"] == trackers
        assert agent.config["build_index"]["hosts"] == indexes
    assert layout.of("proxy")[0].config["build_index"]["hosts"] == indexes
    assert [member.config["neighbours"] for member in layout.of("build-index")] == [
        [indexes[1]],
        [indexes[0]],
    ]


def test_proxies_go_by_the_names_that_their_neighbours_use() -> None:
    layout = lay_out(Shape(proxies=3), DATA, 20000, {"proxy-0": {"listen": "0.0.0.0:20001"}})
    proxies = [member.config for member in layout.of("proxy")]
    for config in proxies:
        others = [other["name"] for other in proxies if other is not config]
        assert config["neighbours"] == others
    assert "name" not in lay_out(Shape(), DATA, 20000).of("proxy")[0].config


def test_each_service_has_its_own_folder_log_and_config_file() -> None:
    layout = lay_out(Shape(), DATA, 20000)
    assert len({member.log_path for member in layout.members}) == len(layout.members)
    agent = layout.of("agent")[1]
    assert agent.config["data_dir"] == "/data/data/agent-1"
    assert agent.log_path == Path("/data/logs/agent-1.log")
    assert agent.config_path == Path("/data/config/agent-1.yaml")


@pytest.mark.parametrize(
    "origins,copies", [(1, {"replicas": 1, "write_quorum": 1}), (2, {"replicas": 2}), (3, {})]
)
def test_a_small_ring_asks_for_no_more_copies_than_it_has_members(
    origins: int, copies: dict[str, int]
) -> None:
    ring = lay_out(Shape(origins=origins), DATA, 20000).of("agent")[0].config["origins"]
    assert copies.items() <= ring.items()
    assert len(ring["hosts"]) == origins


def test_every_generated_config_is_one_that_its_service_takes() -> None:
    for member in lay_out(Shape(origins=1), DATA, 20000).members:
        ROLES[member.role].config_model().model_validate(member.config)


def test_overrides_reach_a_role_and_win_for_a_single_service() -> None:
    layout = lay_out(
        Shape(),
        DATA,
        20000,
        {"agent": {"zone": "a", "peer": {"depth": 9}}, "agent-1": {"zone": "b"}},
    )
    first, second = layout.of("agent")
    assert (first.config["zone"], second.config["zone"]) == ("a", "b")
    assert first.config["peer"]["depth"] == 9
    assert first.config["peer"]["listen"] != second.config["peer"]["listen"]
    assert "zone" not in layout.of("origin")[0].config


def test_two_services_on_one_address_are_refused_by_name() -> None:
    with pytest.raises(LayoutError, match=r"agent-0 and agent-1 .* 127\.0\.0\.1:7000"):
        lay_out(Shape(), DATA, 20000, {"agent": {"listen": "127.0.0.1:7000"}})


@pytest.mark.parametrize("base", [0, -1, 65536 - BLOCK + 1, 70000])
def test_a_block_beyond_the_last_port_is_refused(base: int) -> None:
    with pytest.raises(LayoutError, match=str(base)):
        lay_out(Shape(), DATA, base)


@pytest.mark.parametrize("shape", [{"origins": 0}, {"trackers": 0}, {"agents": -1}])
def test_a_cluster_without_a_service_that_it_needs_is_refused(shape: dict[str, int]) -> None:
    with pytest.raises(LayoutError, match="at least"):
        Shape(**shape)


def test_the_ready_document_has_the_urls_by_role_and_the_pids_by_name() -> None:
    layout = lay_out(Shape(agents=1), DATA, 20000)
    pids = {member.name: 100 + i for i, member in enumerate(layout.members)}
    document = layout.ready_document(pids)
    assert list(document) == ["proxies", "origins", "trackers", "build_indexes", "agents", "pids"]
    assert document["proxies"] == ["http://127.0.0.1:20001"]
    assert len(document["origins"]) == 3
    agent = layout.of("agent")[0]
    assert document["agents"] == [
        {
            "registry": f"http://{agent.config['listen']}",
            "admin": f"http://{agent.config['admin']}",
        }
    ]
    assert document["pids"] == pids


def test_a_service_on_every_interface_is_reached_on_loopback() -> None:
    layout = lay_out(Shape(), DATA, 20000, {"proxy": {"listen": "0.0.0.0:5000"}})
    assert layout.ready_document({})["proxies"] == ["http://127.0.0.1:5000"]


def test_merging_keeps_what_is_not_named_and_replaces_lists() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 2}
    assert merge(base, {"a": {"y": [3]}, "c": 4}) == {"a": {"x": 1, "y": [3]}, "b": 2, "c": 4}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 2}


def test_addresses_of_services_with_a_certificate_are_called_over_https() -> None:
    tls = {"certificate": "/x.crt", "key": "/x.key", "ca": "/ca.pem"}
    over = {"origin": {"tls": tls}, "agent": {"tls": tls}}
    layout = lay_out(Shape(), DATA, 20000, over)
    (first, *_) = layout.of("origin")
    assert first.readiness_url.startswith("https://127.0.0.1:")
    assert first.ca == "/ca.pem"
    assert layout.of("proxy")[0].url().startswith("http://")
    assert layout.of("proxy")[0].ca is None
    assert lay_out(Shape(), DATA, 20000, {"origin": {"tls": None}}).of("origin")[0].ca is None


@pytest.mark.parametrize(
    "listen,registry,scheme",
    [
        ("127.0.0.1:9", None, "http"),
        ("127.0.0.1:9", True, "https"),
        ("0.0.0.0:9", None, "https"),
        ("0.0.0.0:9", False, "http"),
    ],
)
def test_the_layout_knows_what_an_agents_registry_speaks(
    listen: str, registry: bool | None, scheme: str
) -> None:
    tls = {"certificate": "/x.crt", "key": "/x.key", "ca": "/ca.pem", "registry": registry}
    over = {"agent-0": {"listen": listen, "tls": tls}}
    agent = lay_out(Shape(), DATA, 20000, over).of("agent")[0]
    assert agent.url() == f"{scheme}://127.0.0.1:9"
    assert agent.url("admin").startswith("https://")
    config = AgentConfig.model_validate(agent.config)
    assert config.registry_tls == (scheme == "https")
