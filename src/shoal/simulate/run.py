# SPDX-License-Identifier: Apache-2.0
"""Builds a swarm, runs it, and says what came of it."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field

from shoal.ring.rendezvous import owners
from shoal.simulate.host import Host
from shoal.simulate.network import Clock
from shoal.simulate.scenario import SLOW_DOWN, SLOW_UP, Scenario
from shoal.swarm.peers import PeerInfo
from shoal.tracker.handout import Handout, Roster

SAMPLE = 200
"""Moments at which the progress of the hosts is noted."""


@dataclass(slots=True)
class Outcome:
    """What a run brought. Seconds count from each host's own start."""

    scenario: Scenario
    downloaded: list[float] = field(default_factory=list)
    unpacked: list[float] = field(default_factory=list)
    unfinished: int = 0
    origin_copies: float = 0.0
    """Images sent by origins, in whole images."""
    cross_zone_copies: float = 0.0
    """Images that came into a zone from outside, in whole images, on average over the zones."""
    wasted: float = 0.0
    """Bytes that came twice, as a share of all."""
    progress: list[tuple[float, list[int]]] = field(default_factory=list)
    """At some moments: the pieces of each host, in order of their start."""


class Swarm:
    """The world of one run."""

    def __init__(self, scenario: Scenario, *, watch: bool = False) -> None:
        """`watch`: note the progress of every host."""
        self.scenario = scenario
        self.clock = Clock()
        self.rng = random.Random(scenario.seed)
        self.crossings = 0
        self.origin_pieces = 0
        self.wasted = 0
        self.outcome = Outcome(scenario)
        self.hosts: list[Host] = []
        self._by_id: dict[str, Host] = {}
        self._rosters = [Roster() for _ in range(scenario.layers)]
        self._origins: list[list[PeerInfo]] = [[] for _ in range(scenario.layers)]
        self._unfinished = 0
        self._to_come = 0
        self._add_origins()
        self._add_hosts()
        if watch:
            self.clock.at(0.0, self._watch)

    def run(self) -> Outcome:
        """Run until every host that stays is done, or the time is up."""
        # Next to nothing dies before the run ends: to look for cycles is a waste.
        collected = gc.isenabled()
        gc.disable()
        try:
            self.clock.run(self.scenario.given_up)
        finally:
            if collected:
                gc.enable()
        if self.outcome.progress:
            self._note()
        scenario, outcome = self.scenario, self.outcome
        pieces = scenario.layers * scenario.pieces
        outcome.unfinished = self._unfinished + self._to_come
        outcome.origin_copies = self.origin_pieces / pieces
        outcome.cross_zone_copies = self.crossings / pieces / scenario.zones
        outcome.wasted = self.wasted / (pieces * scenario.hosts)
        return outcome

    # -- what hosts see of it

    def host(self, peer_id: str) -> Host | None:
        """Who answers at this address; None when nobody does."""
        host = self._by_id.get(peer_id)
        return host if host is not None and host.alive else None

    def announce(self, host: Host, layer: int, *, complete: bool, starved: bool) -> Handout:
        """What the tracker of a layer notes and answers."""
        roster = self._rosters[layer]
        roster.put(host.info, complete=complete)
        if complete:
            return Handout([], None)
        return roster.hand_out(
            host.info,
            origins=self._origins[layer],
            limit=self.scenario.handout,
            rng=self.rng,
            starved=starved,
        )

    def finished(self, host: Host) -> None:
        """A host has the image."""
        self._unfinished -= 1
        self.outcome.downloaded.append(host.done - host.started)
        self.outcome.unpacked.append(host.unpacked - host.started)
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        if not self._unfinished and not self._to_come:
            self.clock.stop()

    # -- who is there

    def _info(self, number: int, *, origin: bool = False) -> PeerInfo:
        zone = f"zone-{number % self.scenario.zones}" if self.scenario.zones > 1 else ""
        return PeerInfo(f"{number:032x}", "host", 1 + number % 65535, zone, origin)

    def _add_origins(self) -> None:
        scenario = self.scenario
        infos = [self._info(number, origin=True) for number in range(scenario.origins)]
        owned: list[dict[int, tuple[int, int]]] = [{} for _ in infos]
        for layer in range(scenario.layers):
            names = [info.id for info in infos]
            ring = owners(f"layer-{layer}-{scenario.seed}", names, scenario.replicas)
            for rank, name in enumerate(ring):
                owned[names.index(name)][layer] = (rank, len(ring))
                self._origins[layer].append(infos[names.index(name)])
        for info, layers in zip(infos, owned, strict=True):
            origin = Host(self, info, up=scenario.rate, down=scenario.rate, owned=layers)
            self._by_id[info.id] = origin
        if scenario.kill_origin is not None:
            victim = self._by_id[self._origins[0][0].id]
            self.clock.at(scenario.kill_origin, self._kill_origin, victim)

    def _kill_origin(self, origin: Host) -> None:
        origin.die()
        # The tracker asks the origins now and then, and so notices.
        self.clock.after(1.0, self._forget_origin, origin.info)

    def _forget_origin(self, info: PeerInfo) -> None:
        for origins in self._origins:
            if info in origins:
                origins.remove(info)

    def _add_hosts(self) -> None:
        scenario, rng = self.scenario, self.rng
        numbers = range(scenario.origins, scenario.origins + scenario.hosts)
        slow = set(rng.sample(numbers, round(scenario.slow * scenario.hosts)))
        leaving = set(rng.sample(numbers, round(scenario.churn * scenario.hosts)))
        for number in numbers:
            start = rng.uniform(0, scenario.spread)
            self._to_come += 1
            self.clock.at(start, self._start, number, number in slow)
            if number in leaving:
                end = start + rng.uniform(0, scenario.ideal)
                fresh = number + scenario.hosts
                self._to_come += 1
                self.clock.at(end, self._replace, number, fresh, number in slow)

    def _start(self, number: int, slow: bool) -> None:
        rate = self.scenario.rate
        info = self._info(number)
        host = Host(
            self,
            info,
            up=rate * SLOW_UP if slow else rate,
            down=rate * SLOW_DOWN if slow else rate,
            owned={},
        )
        self._by_id[info.id] = host
        self.hosts.append(host)
        self._to_come -= 1
        self._unfinished += 1
        host.start()

    def _replace(self, number: int, fresh: int, slow: bool) -> None:
        host = self._by_id[self._info(number).id]
        if host.fetching:
            self._unfinished -= 1
        host.die()
        self._start(fresh, slow)

    def _watch(self) -> None:
        self._note()
        self.clock.after(self.scenario.ideal * 2 / SAMPLE, self._watch)

    def _note(self) -> None:
        counts = [sum(bits.bit_count() for bits in host.have) for host in self.hosts]
        self.outcome.progress.append((self.clock.now, counts))
