# SPDX-License-Identifier: Apache-2.0
"""Small swarms on the virtual clock, by the product's own cores, over many random seeds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shoal.cli import main
from shoal.simulate.host import Host
from shoal.simulate.plot import SHADES
from shoal.simulate.report import document
from shoal.simulate.run import Swarm
from shoal.simulate.scenario import Scenario, cut
from shoal.swarm.slots import FEW
from shoal.tracker.handout import Handout

MB = 10**6

seeds = st.integers(0, 2**32)
# A seed that fails says all: a smaller one is no simpler.
quick = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def small(**changes: object) -> Scenario:
    given_ = {"hosts": 24, "image": 60 * MB, "rate": 10.0 * MB, "pieces": 24, **changes}
    return Scenario(**given_)  # type: ignore[arg-type]


@quick
@given(
    seed=seeds,
    hosts=st.integers(1, 40),
    origins=st.integers(1, 5),
    layers=st.integers(1, 3),
    zones=st.integers(1, 4),
)
def test_every_host_finishes_whatever_the_shape_of_the_swarm(
    seed: int, hosts: int, origins: int, layers: int, zones: int
) -> None:
    scenario = small(seed=seed, hosts=hosts, origins=origins, layers=layers, zones=zones, pieces=12)
    outcome = Swarm(scenario).run()
    assert outcome.unfinished == 0
    assert len(outcome.downloaded) == hosts
    assert min(outcome.downloaded) >= scenario.ideal
    assert all(
        unpacked >= downloaded
        for downloaded, unpacked in zip(outcome.downloaded, outcome.unpacked, strict=True)
    )


@quick
@given(seed=seeds)
def test_every_host_that_stays_finishes_though_others_die_and_are_slow_and_an_origin_is_lost(
    seed: int,
) -> None:
    scenario = small(seed=seed, churn=0.2, slow=0.2, kill_origin=1.0)
    outcome = Swarm(scenario).run()
    assert outcome.unfinished == 0
    assert len(outcome.downloaded) >= scenario.hosts


@quick
@given(seed=seeds, zones=st.integers(2, 4))
def test_zones_that_lose_relays_and_an_origin_finish_all_the_same(seed: int, zones: int) -> None:
    scenario = small(seed=seed, zones=zones, churn=0.3, slow=0.1, kill_origin=2.0, pieces=12)
    outcome = Swarm(scenario).run()
    assert outcome.unfinished == 0


@quick
@given(seed=seeds, pieces=st.integers(1, 6))
def test_pieces_that_take_seconds_trip_no_timeout(seed: int, pieces: int) -> None:
    scenario = small(seed=seed, pieces=pieces, image=300 * MB, hosts=12)
    outcome = Swarm(scenario).run()
    assert outcome.unfinished == 0
    assert max(outcome.downloaded) < 6 * scenario.ideal


@quick
@given(seed=seeds)
def test_hosts_that_may_hold_few_connections_form_no_islands(seed: int) -> None:
    outcome = Swarm(small(seed=seed, hosts=40, handout=4, max_dialed=3, max_accepted=6)).run()
    assert outcome.unfinished == 0


@pytest.mark.parametrize("seed", range(4))
def test_many_layers_share_connections_of_which_fewer_are_dialed_than_accepted(seed: int) -> None:
    """Each of the 20 layers would dial four peers of its own; the host dials nine at most."""
    scenario = small(seed=seed, hosts=100, layers=20, pieces=2, max_dialed=4, max_accepted=12)
    swarm = WatchedSwarm(scenario)
    outcome = swarm.run()
    assert outcome.unfinished == 0
    assert max(swarm.dialed.values()) <= 9
    assert min(swarm.peers.values()) >= FEW
    assert swarm.turned_away <= 0.1 * swarm.tries


class WatchedSwarm(Swarm):
    """Notes the connections of every host."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.dialed: Counter[str] = Counter()
        """Connections that each host had dialed at a time, at most."""
        self.peers: dict[tuple[str, int], int] = {}
        """Peers that each layer of each host had when it was whole."""
        self.tries = self.turned_away = 0

    def host(self, peer_id: str) -> Host | None:
        for host in self.hosts:
            dialed = sum(port.dialed for port in host.ports.values())
            self.dialed[host.info.id] = max(self.dialed[host.info.id], dialed)
        dialed_one = super().host(peer_id)
        if dialed_one is not None and not dialed_one.info.origin:
            self.tries += 1
            accepted = sum(not port.dialed for port in dialed_one.ports.values())
            self.turned_away += accepted >= self.scenario.max_accepted
        return dialed_one

    def announce(self, host: Host, layer: int, *, complete: bool, starved: bool) -> Handout:
        if complete:
            self.peers[host.info.id, layer] = len(host.open[layer])
        return super().announce(host, layer, complete=complete, starved=starved)


@quick
@given(seed=seeds)
def test_origins_send_few_copies_and_the_others_come_from_peers(seed: int) -> None:
    outcome = Swarm(small(seed=seed, hosts=40)).run()
    assert 1 <= outcome.origin_copies <= 8


@pytest.mark.parametrize("seed", range(4))
def test_a_piece_crosses_into_each_zone_at_most_twice_on_average(seed: int) -> None:
    outcome = Swarm(small(seed=seed, hosts=60, zones=4, pieces=96)).run()
    assert outcome.unfinished == 0
    assert 0 < outcome.cross_zone_copies <= 2


def test_the_same_seed_gives_the_same_run_and_another_seed_another_one() -> None:
    runs = [document(Swarm(small(seed=seed, churn=0.1)).run()) for seed in (7, 7, 8)]
    assert runs[0] == runs[1]
    assert runs[1]["downloaded"] != runs[2]["downloaded"]


@pytest.mark.parametrize("seed", range(3))
def test_a_swarm_is_nearly_as_quick_as_one_host_alone_and_its_readers_not_far_behind(
    seed: int,
) -> None:
    scenario = small(seed=seed, hosts=60, image=600 * MB, rate=100.0 * MB, pieces=200)
    outcome = Swarm(scenario).run()
    assert max(outcome.downloaded) <= 1.15 * scenario.ideal
    assert max(outcome.unpacked) <= 1.6 * scenario.ideal


def test_a_layer_is_cut_as_the_product_cuts_it() -> None:
    assert cut(1_500_000_000) == Scenario().pieces
    assert cut(1) == 1


def test_a_host_alone_with_one_origin_downloads_at_line_speed() -> None:
    scenario = small(hosts=1, origins=1, layers=1, pieces=96)
    outcome = Swarm(scenario).run()
    assert outcome.downloaded[0] <= 1.1 * scenario.ideal
    assert outcome.origin_copies == pytest.approx(1.0)


def test_a_run_that_cannot_end_is_given_up_and_says_who_was_not_done() -> None:
    outcome = Swarm(small(hosts=5, origins=1, kill_origin=0.5, limit=30.0)).run()
    assert outcome.unfinished == 5
    assert outcome.downloaded == []


@pytest.mark.parametrize(
    "wrong", [{"hosts": 0}, {"rate": 0.0}, {"churn": 1.5}, {"slow": -0.1}, {"pieces": 0}]
)
def test_what_cannot_be_simulated_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        small(**wrong)


ARGUMENTS = ["simulate", "--hosts", "12", "--image", "30MB", "--rate", "10MB/s", "--pieces", "8"]


def test_the_command_prints_one_json_object() -> None:
    result = CliRunner().invoke(main, [*ARGUMENTS, "--zones", "2", "--churn", "5%", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ideal_s"] == 3.0
    assert found["unfinished"] == 0
    assert set(found["downloaded"]) == set(found["unpacked"]) == {"p50", "p99", "p999", "max"}
    assert {"origin_copies", "cross_zone_copies"} <= set(found)


def test_the_command_prints_a_table_and_draws_the_swarm(tmp_path: Path) -> None:
    plot = tmp_path / "swarm.svg"
    result = CliRunner().invoke(main, [*ARGUMENTS, "--kill-origin", "1s", "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    assert "downloaded" in result.stdout
    assert json.loads(result.stdout.splitlines()[-1])["finished"] == 12
    picture = ET.parse(plot).getroot()
    assert picture.tag.endswith("svg")
    darkest = [area for area in picture.findall("{*}path") if area.get("fill") == SHADES[-1]]
    assert darkest[0].attrib["d"].count("M") == 12  # A row for each host, and each gets all.


@pytest.mark.parametrize(
    "arguments", [["--rate", "300MB"], ["--churn", "130%"], ["--kill-origin", "soon"]]
)
def test_the_command_refuses_what_it_does_not_understand(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["simulate", *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.output
