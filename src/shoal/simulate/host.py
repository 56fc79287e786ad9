# SPDX-License-Identifier: Apache-2.0
"""One host: the product's cores, wired to virtual links as `swarm.node` wires them to sockets."""

from __future__ import annotations

import random
from operator import attrgetter
from typing import Protocol

from shoal.simulate.network import Clock, Downlink, Uplink
from shoal.simulate.scenario import Scenario
from shoal.swarm import bits as bitset
from shoal.swarm.pace import Intake, Pace
from shoal.swarm.peers import PeerInfo
from shoal.swarm.picker import Picker
from shoal.swarm.seeding import Seeding
from shoal.swarm.slots import LinkPolicy, Standing, UploadSlots
from shoal.tracker.handout import Handout

TICK = 0.1
"""Seconds between looks for late pieces and stalled peers, as in `swarm.node`."""

REQUEST_TIMEOUT = 4.0
PIPELINE = 8 * 1024 * 1024
CREDIT = 8 * 1024 * 1024
MAX_STRIKES = 3
STARVED = 1.0
"""Seconds without a piece after which a host asks the tracker for others."""

SETTLE = 0.2
"""Seconds after its first announce at which a host announces itself again."""

REPLENISH = 0.5
"""Fraction of the connections dialed below which a host asks the tracker for more."""


_by_ease = attrgetter("pace.expected")


class World(Protocol):
    """What surrounds a host."""

    scenario: Scenario
    clock: Clock
    rng: random.Random
    crossings: int
    origin_pieces: int
    wasted: int

    def host(self, peer_id: str) -> Host | None: ...
    def announce(self, host: Host, layer: int, *, complete: bool, starved: bool) -> Handout: ...
    def finished(self, host: Host) -> None: ...


class Port:
    """A connection as one of its two sides sees it."""

    __slots__ = ("back", "dialed", "far", "host", "id", "last_wanted", "latency", "pace", "since")

    back: Port

    def __init__(self, host: Host, *, far: bool, latency: float, limit: int, dialed: bool) -> None:
        self.host = host
        self.id = host.info.id
        self.far = far
        self.latency = latency
        self.dialed = dialed
        self.pace = Pace(limit=limit, timeout=REQUEST_TIMEOUT)
        self.since = 0.0
        self.last_wanted = 0.0


class Host:
    """An agent, or an origin that owns some of the layers."""

    def __init__(
        self,
        world: World,
        info: PeerInfo,
        *,
        up: float,
        down: float,
        owned: dict[int, tuple[int, int]],
    ) -> None:
        """`owned`: an origin's rank among the owners of each of its layers, and their number."""
        scenario = world.scenario
        self.world = world
        self.clock = world.clock
        self.info = info
        self.size = scenario.piece_size
        self.alive = True
        self.started = 0.0
        self.done = 0.0
        self.unpacked = 0.0
        count, layers = scenario.pieces, scenario.layers
        self.have = [bitset.full(count) if layer in owned else 0 for layer in range(layers)]
        self.seedings: list[Seeding | None] = [None] * layers
        for layer, (rank, seeds) in owned.items():
            credit = max(4, int(CREDIT // self.size))
            self.seedings[layer] = Seeding(count, rank=rank, seeds=seeds, credit=credit, ahead=32)
        self.pickers: list[Picker | None] = [None] * layers
        self.fetching = False
        self.ports: dict[str, Port] = {}
        self.slots = UploadSlots()
        self.intake = Intake()
        self.policy = LinkPolicy(max_dialed=scenario.max_dialed, max_accepted=scenario.max_accepted)
        self.candidates: list[dict[str, PeerInfo]] = [{} for _ in range(layers)]
        self._up = Uplink(world.clock, up, self.size, self._on_sent)
        self._down = Downlink(down, self.size)
        self._pipeline = max(PIPELINE, int(2 * self.size))
        self._banned: dict[str, float] = {}
        self._turn = 0
        self._read = 0
        """Pieces of the image, layer after layer, that its reader has been given."""
        self._last_piece = 0.0
        self._last_announce = 0.0

    # -- life

    def start(self) -> None:
        """Pull the image."""
        self.started = self._last_piece = self.clock.now
        self.fetching = True
        count = self.world.scenario.pieces
        for layer in range(len(self.pickers)):
            picker = self.pickers[layer] = Picker(count, 0, rng=self.world.rng)
            picker.set_reader("client", 0)
        self._announce(starved=False)
        self.clock.after(SETTLE, self._settle_in)
        self.clock.after(self.world.rng.uniform(0, TICK), self._tick)

    def die(self) -> None:
        """Fall silent: peers notice by themselves."""
        self.alive = False
        self.fetching = False
        self._up.stopped = True

    def _announce(self, *, starved: bool) -> None:
        self._last_announce = self.clock.now
        for layer, picker in enumerate(self.pickers):
            if picker is None:
                continue
            told = self.world.announce(self, layer, complete=False, starved=starved)
            if told.share is not None:
                picker.set_share(*told.share)
            for peer in told.peers:
                self.candidates[layer][peer.id] = peer
            self._connect(layer)

    def _settle_in(self) -> None:
        """Those that came first were told of few: they ask again when the others are there."""
        if self.fetching:
            self._announce(starved=False)

    def _tick(self) -> None:
        if not self.fetching:
            return
        now = self.clock.now
        for port in list(self.ports.values()):
            if port.pace.stalled(now):
                self._stalled(port, now)
        self.fill_all()
        starved = now - self._last_piece > STARVED
        few = len(self.ports) < REPLENISH * self.policy.max_dialed
        if (starved or few) and now - self._last_announce > STARVED:
            self._announce(starved=starved)
        self.clock.after(TICK, self._tick)

    # -- connections

    def _connect(self, layer: int) -> None:
        now = self.clock.now
        candidates = self.candidates[layer]
        linked = sum(peer in self.ports for peer in candidates)
        wanted = self.policy.to_dial(linked)
        for peer in list(candidates):
            if not wanted:
                return
            if peer in self.ports or self._banned.get(peer, 0.0) > now:
                continue
            other = self.world.host(peer)
            del candidates[peer]
            if other is not None and other.let_in(self):
                self._link(other)
                wanted -= 1

    def let_in(self, dialer: Host) -> bool:
        """Whether a host that dials is taken in."""
        if dialer.info.id in self.ports:
            return False
        now = self.clock.now
        accepted = [port for port in self.ports.values() if not port.dialed]
        if self.policy.has_room(len(accepted)):
            return True
        victim = self.policy.make_room(
            [
                Standing(
                    port.id,
                    port.since,
                    max(port.last_wanted, port.back.last_wanted),
                    bool(port.pace.in_flight or port.back.pace.in_flight),
                )
                for port in accepted
            ],
            now,
        )
        if victim is None:
            return False
        self.close(self.ports[victim])
        return True

    def _link(self, other: Host) -> None:
        scenario = self.world.scenario
        far = self.info.zone != other.info.zone
        latency = scenario.far_latency if far else scenario.latency
        mine = Port(other, far=far, latency=latency, limit=self._pipeline, dialed=True)
        theirs = Port(self, far=far, latency=latency, limit=self._pipeline, dialed=False)
        mine.back, theirs.back = theirs, mine
        mine.since = theirs.since = mine.last_wanted = theirs.last_wanted = self.clock.now
        self.ports[other.info.id] = mine
        other.ports[self.info.id] = theirs
        # A round trip for the connection, another for the hellos, half of one for what is shown.
        self.clock.after(5 * latency, self._greet, mine)

    def _greet(self, port: Port) -> None:
        for side in (port, port.back):
            owner = side.back.host
            if owner.alive and owner.ports.get(side.id) is side:
                owner.meet(side)

    def meet(self, port: Port) -> None:
        """A peer opens the layers that both have or fetch."""
        other = port.host
        for layer, picker in enumerate(self.pickers):
            seeding = self.seedings[layer]
            if seeding is not None and other.pickers[layer] is not None:
                self._show(port, layer, seeding.join(port.id, other.have[layer]))
            if picker is None:
                continue
            seed = other.seedings[layer] is not None
            if not seed and other.pickers[layer] is None and not other.have[layer]:
                continue
            picker.add_peer(port.id, 0 if seed else other.have[layer], seed=seed, outside=port.far)
        self.fill(port)

    def close(self, port: Port) -> None:
        """Close a connection; the other side notices at once."""
        back = port.back
        self.forget(port)
        port.host.forget(back)

    def forget(self, port: Port) -> None:
        """A connection is no more: what was due over it is asked of others."""
        if self.ports.get(port.id) is not port:
            return
        del self.ports[port.id]
        self.slots.leave(port.id)
        for layer, picker in enumerate(self.pickers):
            seeding = self.seedings[layer]
            if seeding is not None:
                seeding.leave(port.id)
            if picker is not None:
                for _ in picker.asked_of(port.id):
                    self._settle(port)
                picker.remove_peer(port.id)

    def _stalled(self, port: Port, now: float) -> None:
        if port.pace.punish(now) >= MAX_STRIKES or not port.host.alive:
            self._banned[port.id] = now + 30.0
            self.close(port)
            return
        for layer, picker in enumerate(self.pickers):
            if picker is None:
                continue
            for index in picker.asked_of(port.id):
                picker.failed(port.id, index)
                self._cancel(port, layer, index)

    # -- what to ask for

    def fill(self, port: Port) -> None:
        """Ask a peer for as much as its pace and this host's intake allow, first layer first."""
        now = self.clock.now
        size = int(self.size)
        free = port.host.info.origin
        while (free or self.intake.room()) and port.pace.room(size, now):
            for layer, picker in enumerate(self.pickers):
                if picker is None or not picker.knows(port.id):
                    continue
                index = picker.pick(port.id, now)
                if index is not None:
                    self._request(port, layer, index)
                    break
            else:
                return

    def fill_all(self) -> None:
        """Ask for what the reader waits for, then whoever is quick and has room."""
        if not self.intake.room():
            return
        now = self.clock.now
        for layer, picker in enumerate(self.pickers):
            if picker is None:
                continue
            while self.intake.room():
                found = picker.pick_for_reader(now, self._ease)
                if found is None:
                    break
                self._request(self.ports[found[0]], layer, found[1])
            break
        if not self.intake.room():
            return
        for port in sorted(self.ports.values(), key=_by_ease):
            self.fill(port)
            if not self.intake.room():
                return

    def _ease(self, peer: str) -> float | None:
        pace = self.ports[peer].pace
        return pace.expected if pace.room(int(self.size), self.clock.now) else None

    def _request(self, port: Port, layer: int, index: int) -> None:
        now, size = self.clock.now, int(self.size)
        port.pace.asked(size, now)
        if not port.host.info.origin:
            self.intake.asked()
        port.last_wanted = now
        port.host.requested(port.back, layer, index)

    def _cancel(self, port: Port, layer: int, index: int) -> None:
        size = int(self.size)
        port.pace.dropped(size)
        self._settle(port)
        port.host.slots.cancel(self.info.id, (layer, index))

    def _settle(self, port: Port) -> None:
        if not port.host.info.origin:
            self.intake.settled()

    # -- giving

    def requested(self, port: Port, layer: int, index: int) -> None:
        """A peer wants a piece. The request's way is counted when the piece arrives."""
        if not self.alive:
            return
        seeding = self.seedings[layer]
        if seeding is not None:
            self._show(port, layer, seeding.asked(port.id, index))
        self.slots.ask(port.id, (layer, index))
        self._send()

    def _send(self) -> None:
        while (turn := self.slots.next(self.clock.now)) is not None:
            self._up.begin(turn)

    def _on_sent(self, turn: tuple[str, tuple[int, int]], began: float) -> None:
        peer, (layer, index) = turn
        self.slots.sent(peer)
        port = self.ports.get(peer)
        if port is not None:
            port.last_wanted = self.clock.now
            port.host.receiving(port.back, layer, index, began)
        self._send()

    def _show(self, port: Port, layer: int, pieces: int) -> None:
        if pieces:
            self.clock.after(port.latency, port.host.shown, port.back, layer, pieces)

    # -- getting

    def receiving(self, port: Port, layer: int, index: int, began: float) -> None:
        """A piece's last byte has left its sender."""
        if not self.alive:
            return
        now = self.clock.now
        way = 2 * port.latency  # the request's and the piece's
        whole = self._down.received(began + way, now + way)
        checked = self.size / self.world.scenario.verify_rate
        self.clock.at(whole + checked, self._got, port, layer, index)

    def _got(self, port: Port, layer: int, index: int) -> None:
        world, now = self.world, self.clock.now
        if port.far:
            world.crossings += 1
        if port.host.info.origin:
            world.origin_pieces += 1
        picker = self.pickers[layer]
        if picker is None or not picker.is_asked(port.id, index):
            world.wasted += 1
            return
        size = int(self.size)
        port.pace.bytes_came(now)
        port.pace.completed(size, picker.arrived(port.id, index, now))
        self._settle(port)
        for peer in picker.verified(index):
            other = self.ports.get(peer)
            if other is not None:
                self._cancel(other, layer, index)
        self.have[layer] |= 1 << index
        self._last_piece = now
        self._feed_reader(now)
        for other in self.ports.values():
            other.host.has(other.back, layer, index)
        if not picker.missing:
            self.pickers[layer] = None
            self._layer_done(layer)
        if port.host.info.origin:
            self.fill(port)
        self.fill_all()

    def _feed_reader(self, now: float) -> None:
        scenario = self.world.scenario
        total = scenario.layers * scenario.pieces
        while self._read < total:
            layer, index = divmod(self._read, scenario.pieces)
            if not self.have[layer] >> index & 1:
                return
            self.unpacked = max(now, self.unpacked) + self.size / scenario.rate
            self._read += 1

    def _layer_done(self, layer: int) -> None:
        self.world.announce(self, layer, complete=True, starved=False)
        self.candidates[layer].clear()
        if all(picker is None for picker in self.pickers):
            self.fetching = False
            self.done = self.clock.now
            self.world.finished(self)

    def has(self, port: Port, layer: int, index: int) -> None:
        """A peer has got a piece."""
        if not self.alive:
            return
        seeding = self.seedings[layer]
        if seeding is not None:
            self._show(port, layer, seeding.has(port.id, index))
        picker = self.pickers[layer]
        if picker is not None and picker.knows(port.id):
            picker.peer_has(port.id, index)
            if self.intake.room() and port.pace.in_flight == 0:
                self.clock.after(port.latency, self.fill, port)

    def shown(self, port: Port, layer: int, pieces: int) -> None:
        """An origin shows pieces."""
        picker = self.pickers[layer]
        if picker is None or self.ports.get(port.id) is not port or not picker.knows(port.id):
            return
        for index in bitset.indices(pieces):
            picker.peer_has(port.id, index)
        self.fill(port)
