# SPDX-License-Identifier: Apache-2.0
"""The swarm benchmark's arithmetic and its plan of a network; no process is started."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.bench.report import to_milli
from shoal.bench.swarm import Conditions, SwarmRun, limited
from shoal.bench.swarm_latency import Latency
from shoal.bench.swarm_network import plan
from shoal.bench.swarm_report import document, latency_document
from shoal.cli import main
from shoal.cluster.layout import Shape, lay_out
from shoal.cluster.roles import ROLES

GIB = 1 << 30
SHAPE = Shape(agents=2)


def measured(last: float, from_origins: int) -> SwarmRun:
    return SwarmRun(
        finish_s=[1.0, last],
        first_byte_s=[0.01, 0.03],
        from_origins=from_origins,
        from_peers=2 * GIB - from_origins,
        cpu_s={"agent": 3.0, "origin": 1.0},
        other_cores=0.5,
    )


def test_the_report_is_of_the_median_run_and_per_delivered_byte() -> None:
    conditions = Conditions(agents=2, size=GIB, runs=3, rate=GIB / 2)
    runs = [measured(9.0, GIB), measured(2.0, GIB), measured(2.2, 3 * GIB // 2)]
    figures = to_milli(document(runs, conditions))
    assert figures["finish_s"] == [1.0, 2.2]
    assert (figures["ideal_s"], figures["last_to_ideal"]) == (2.0, 1.1)
    assert figures["last_s_of_runs"] == [9.0, 2.0, 2.2]
    assert (figures["origin_copies"], figures["peer_copies"]) == (1.0, 1.0)
    assert figures["cpu_s_per_gib"] == 2.0
    assert figures["cpu_s_per_gib_by_role"] == {"agent": 1.5, "origin": 0.5}
    assert figures["other_cores"] == 0.5
    assert (figures["first_byte_ms"], figures["first_byte_ms_max"]) == (20.0, 30.0)
    assert figures["limited_by"] == "shoal"


def test_without_a_limit_there_is_no_ideal() -> None:
    figures = document([measured(2.0, GIB)], Conditions(agents=2, size=GIB))
    assert (figures["rate"], figures["ideal_s"], figures["last_to_ideal"]) == (None, None, None)
    assert figures["limited_by"] is None
    assert figures["mb_per_s_together"] == pytest.approx(2 * GIB / 1e6 / 2.0)


def test_latencies_are_medians_with_every_run_beside_them() -> None:
    small = [0.011, 0.009, 0.01], [0.03, 0.04, 0.02], [0.02, 0.02, 0.02]
    runs = [
        Latency(small[0], [0.006], 0.05, 0.9),
        Latency(small[1], [0.008], 0.04, 0.8),
        Latency(small[2], [0.007], 0.06, 1.0),
    ]
    figures = to_milli(latency_document(runs, GIB))
    assert (figures["first_byte_small_ms"], figures["first_byte_small_ms_max"]) == (20.0, 40.0)
    assert figures["small_blobs"] == 9
    assert (figures["first_byte_layer_ms"], figures["first_byte_layer_ms_max"]) == (7.0, 8.0)
    assert figures["first_byte_small_ms_of_runs"] == [10.0, 30.0, 20.0]
    assert figures["first_byte_large_ms"] == 50.0
    assert (figures["tiny_layers"], figures["tiny_layers_s"]) == (60, 0.9)
    assert figures["tiny_layers_s_of_runs"] == [0.9, 0.8, 1.0]


def test_the_limit_is_in_the_config_of_agents_and_origins() -> None:
    peer = {"ingress": "12500000B/s", "egress": "12500000B/s"}
    assert limited(12.5e6) == {"agent": {"peer": peer}, "origin": {"peer": peer}}
    assert limited(0.0) == {}


def planned(folder: Path) -> dict[str, dict[str, Any]]:
    net = plan(SHAPE, 1e6, ipaddress.IPv4Network("10.231.7.0/24"), "shb1")
    layout = lay_out(SHAPE, folder, 10240, net.overrides)
    return {member.name: member.config for member in layout.members}


def test_agents_and_origins_have_hosts_and_everybody_knows_their_addresses(tmp_path: Path) -> None:
    configs = planned(tmp_path)
    origins = ["10.231.7.10:5002", "10.231.7.11:5002", "10.231.7.12:5002"]
    assert [configs[f"origin-{i}"]["listen"] for i in range(3)] == origins
    assert all(config["origins"]["hosts"] == origins for config in configs.values())
    for config in (configs["agent-0"], configs["origin-2"], configs["proxy-0"]):
        assert config["build_index"]["hosts"] == [configs["build-index-0"]["listen"]]
    agents = [configs[f"agent-{i}"] for i in range(2)]
    assert [agent["peer"]["listen"] for agent in agents] == [
        "10.231.7.120:5012",
        "10.231.7.121:5012",
    ]
    assert agents[0]["tracker"]["hosts"] == [configs["tracker-0"]["listen"]]
    assert all(agent["listen"].startswith("127.0.0.1:") for agent in agents)


@pytest.mark.parametrize("role", ROLES)
def test_the_services_take_the_config_of_such_a_network(role: str, tmp_path: Path) -> None:
    ROLES[role].config_model().model_validate(planned(tmp_path)[f"{role}-0"])


def test_each_host_has_a_namespace_and_a_link_that_no_other_has() -> None:
    shape = Shape(agents=100)
    net = plan(shape, 1e6, ipaddress.IPv4Network("10.231.7.0/24"), "shb4194304")
    assert set(net.launchers) == {
        name for name in shape.names() if name.startswith(("agent-", "origin-"))
    }
    for what in ("namespace", "outside", "address"):
        assert len({getattr(host, what) for host in net.hosts}) == len(net.hosts)
    assert all(len(host.outside) < 16 for host in net.hosts), "what Linux allows"
    assert net.launchers["agent-7"][:2] == ("nsenter", "--net=/run/netns/shb4194304-agent-7")


def test_namespaces_without_a_rate_are_refused() -> None:
    result = CliRunner().invoke(main, ["bench", "swarm", "--netns"])
    assert result.exit_code == 2
    assert "--netns needs a --rate" in result.stderr
