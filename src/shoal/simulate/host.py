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
QUEUE = 40
"""Pieces of others that a piece may wait for at a peer before that peer counts as silent. Here a
piece comes at once, so coarse ones of slow links must be borne with; there, any byte is a sign."""

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

    __slots__ = (
        "back",
        "dialed",
        "far",
        "greeted",
        "host",
        "id",
        "last_wanted",
        "latency",
        "origin",
        "pace",
        "since",
    )

    back: Port

    def __init__(
        self, host: Host, *, far: bool, scenario: Scenario, pace: Pace, now: float, dialed: bool
    ) -> None:
        self.host = host
        self.id = host.info.id
        self.origin = host.info.origin
        self.far = far
        self.latency = scenario.far_latency if far else scenario.latency
        self.dialed = dialed
        self.greeted = False
        self.pace = pace
        self.since = now
        self.last_wanted = now


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
        self._length = int(self.size)
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
        self.open: list[dict[str, Port]] = [{} for _ in range(layers)]
        """Of each layer: the connections over which it is given or fetched."""
        self.slots = UploadSlots()
        self.intake = Intake()
        self.policy = LinkPolicy(max_dialed=scenario.max_dialed, max_accepted=scenario.max_accepted)
        self.candidates: list[dict[str, PeerInfo]] = [{} for _ in range(layers)]
        self._up = Uplink(world.clock, up, self.size, self._on_sent)
        self._down = Downlink(down, self.size)
        self._banned: dict[str, float] = {}
        self._short: set[int] = set()
        """Layers that may not dial all the peers that they want."""
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
            picker.set_reader("client", 0, self.clock.now)
        self._announce(starved=False)
        self.clock.after(SETTLE, self._settle_in)
        self.clock.after(self.world.rng.uniform(0, TICK), self._tick)

    def die(self) -> None:
        """Fall silent: peers notice by themselves."""
        self.alive = False
        self.fetching = False
        self.pickers = [None] * len(self.pickers)
        self._up.stopped = True

    def _announce(self, *, starved: bool) -> None:
        self._last_announce = self.clock.now
        for layer, picker in enumerate(self.pickers):
            if picker is None:
                continue
            told = self.world.announce(self, layer, complete=False, starved=starved)
            picker.set_share(told.share)
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
        few = any(
            len(linked) < REPLENISH * self.policy.max_dialed
            for picker, linked in zip(self.pickers, self.open, strict=True)
            if picker is not None
        )
        if (starved or few) and now - self._last_announce > STARVED:
            self._announce(starved=starved)
        self.clock.after(TICK, self._tick)

    # -- connections

    def _connect(self, layer: int) -> None:
        now = self.clock.now
        candidates = self.candidates[layer]
        opened = self.open[layer]
        linked = 0
        for peer in candidates:
            port = self.ports.get(peer)
            if port is not None:
                linked += 1
                if port.greeted and peer not in opened:
                    self.clock.after(2 * port.latency, self._open, port, layer)
        shared = sum(peer not in candidates for peer in opened)
        dialed = sum(port.dialed for port in self.ports.values())
        wanted = self.policy.to_dial(linked, shared, dialed)
        left = 0
        for peer in list(candidates):
            if peer in self.ports or self._banned.get(peer, 0.0) > now:
                continue
            if not wanted:
                left += 1
                continue
            other = self.world.host(peer)
            if other is not None and other.let_in(self):
                self._link(other)
                wanted -= 1
                linked += 1
            else:
                del candidates[peer]
        self._short.discard(layer)
        if left and self.policy.wanted(linked):
            self._short.add(layer)
            self._share(layer, self.policy.to_share(linked, shared))
            self._spare(now)

    def _share(self, layer: int, count: int) -> None:
        """Take part in a layer over connections that are there for others: every agent has all."""
        for port in self.ports.values():
            if count <= 0:
                return
            if port.origin or port.far or not port.greeted:
                continue
            if port.id not in self.open[layer]:
                self.clock.after(2 * port.latency, self._open, port, layer)
                count -= 1

    def _spare(self, now: float) -> None:
        """Close a connection that was dialed and serves nothing: its place is needed."""
        used: set[str] = set()
        for picker, opened in zip(self.pickers, self.open, strict=True):
            if picker is not None:
                used |= opened.keys()
        unused = (port for port in self.ports.values() if port.dialed and port.greeted)
        peer = self.policy.spare((_standing(it) for it in unused if it.id not in used), now)
        if peer is not None:
            self.close(self.ports[peer])

    def connect_short(self) -> None:
        """Connections have come: see to the layers that have too few."""
        for layer in sorted(self._short):
            if self.pickers[layer] is not None:
                self._connect(layer)
            else:
                self._short.discard(layer)

    def let_in(self, dialer: Host) -> bool:
        """Whether a host that dials is taken in."""
        if dialer.info.id in self.ports:
            return False
        now = self.clock.now
        accepted = [port for port in self.ports.values() if not port.dialed]
        if self.policy.has_room(len(accepted)):
            return True
        victim = self.policy.make_room(map(_standing, accepted), now)
        if victim is None:
            return False
        self.close(self.ports[victim])
        return True

    def _link(self, other: Host) -> None:
        scenario = self.world.scenario
        far = self.info.zone != other.info.zone
        now = self.clock.now
        mine = Port(other, far=far, scenario=scenario, pace=self._pace(), now=now, dialed=True)
        theirs = Port(self, far=far, scenario=scenario, pace=self._pace(), now=now, dialed=False)
        mine.back, theirs.back = theirs, mine
        self.ports[other.info.id] = mine
        other.ports[self.info.id] = theirs
        # A round trip for the connection, another for the hellos, half of one for what is shown.
        self.clock.after(5 * mine.latency, self._greet, mine)

    def _pace(self) -> Pace:
        timeout = max(REQUEST_TIMEOUT, QUEUE * self.size / self.world.scenario.rate)
        return Pace(limit=max(PIPELINE, 2 * self._length), timeout=timeout)

    def _greet(self, port: Port) -> None:
        port.greeted = port.back.greeted = True
        for layer, candidates in enumerate(self.candidates):
            if port.id in candidates or self.info.id in port.host.candidates[layer]:
                self._open(port, layer)
        self.connect_short()
        port.host.connect_short()

    def _open(self, port: Port, layer: int) -> None:
        """Both sides take part in a layer over this connection, if they still do."""
        back, other = port.back, port.host
        if not (self.alive and other.alive and self.ports.get(port.id) is port):
            return
        if port.id in self.open[layer]:
            return
        self.open[layer][port.id] = port
        other.open[layer][back.id] = back
        self.meet(port, layer)
        other.meet(back, layer)
        self.fill(port)
        other.fill(back)

    def meet(self, port: Port, layer: int) -> None:
        """A peer takes part in a layer."""
        other = port.host
        seeding, picker = self.seedings[layer], self.pickers[layer]
        if seeding is not None and other.pickers[layer] is not None:
            self._show(port, layer, seeding.join(port.id, other.have[layer]))
        if picker is not None:
            seed = other.seedings[layer] is not None
            have = 0 if seed else other.have[layer]
            picker.add_peer(port.id, have, seed=seed, outside=port.far)

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
            self.candidates[layer].pop(port.id, None)
            if self.open[layer].pop(port.id, None) is None:
                continue
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
        now, length = self.clock.now, self._length
        intake, origin, peer = self.intake, port.origin, port.id
        while (origin or intake.room()) and port.pace.room(length, now):
            beyond = origin or intake.spare()
            for layer, picker in enumerate(self.pickers):
                if picker is None:
                    continue
                if peer in self.open[layer]:
                    index = picker.pick(peer, now, beyond=beyond)
                    if index is not None:
                        self._request(port, layer, index)
                        break
                if not (origin or intake.idle()):
                    return
            else:
                return

    def fill_all(self) -> None:
        """Ask for what the reader waits for, then whoever is quick and has room."""
        intake = self.intake
        if not intake.room():
            return
        now = self.clock.now
        fetched = [(layer, it) for layer, it in enumerate(self.pickers) if it is not None]
        for place, (layer, picker) in enumerate(fetched):
            while intake.idle() if place else intake.room():
                found = picker.pick_for_reader(now, self._ease)
                if found is None:
                    break
                self._request(self.ports[found[0]], layer, found[1])
        spare = intake.spare()
        names: dict[str, None] = {}
        for _, picker in fetched if intake.idle() else fetched[:1]:
            names |= dict.fromkeys(picker.promising(now, beyond=spare))
        ports, length = self.ports, self._length
        ready = [port for name in names if (port := ports[name]).pace.room(length, now)]
        ready.sort(key=_by_ease)
        for port in ready:
            if not intake.room():
                return
            self.fill(port)

    def _ease(self, peer: str) -> float | None:
        pace = self.ports[peer].pace
        return pace.expected if pace.room(self._length, self.clock.now) else None

    def _request(self, port: Port, layer: int, index: int) -> None:
        now, size = self.clock.now, self._length
        port.pace.asked(size, now)
        if not port.origin:
            self.intake.asked()
        port.last_wanted = now
        port.host.requested(port.back, layer, index)

    def _cancel(self, port: Port, layer: int, index: int) -> None:
        size = self._length
        port.pace.dropped(size)
        self._settle(port)
        port.host.slots.cancel(self.info.id, (layer, index))

    def _settle(self, port: Port) -> None:
        if not port.origin:
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
            self._up.begin((*turn, self.slots.load(turn[0])))

    def _on_sent(self, sent: tuple[str, tuple[int, int], int], began: float) -> None:
        peer, (layer, index), load = sent
        self.slots.sent(peer)
        port = self.ports.get(peer)
        if port is not None:
            port.last_wanted = self.clock.now
            port.host.receiving(port.back, layer, index, began, load)
        self._send()

    def _show(self, port: Port, layer: int, pieces: int) -> None:
        if pieces:
            self.clock.after(port.latency, port.host.shown, port.back, layer, pieces)

    # -- getting

    def receiving(self, port: Port, layer: int, index: int, began: float, load: int) -> None:
        """A piece's last byte has left its sender; what its header said of the load there."""
        if not self.alive:
            return
        now = self.clock.now
        way = 2 * port.latency  # the request's and the piece's
        whole = self._down.received(began + way, now + way)
        checked = self.size / self.world.scenario.verify_rate
        took = whole - began - way
        self.clock.at(whole + checked, self._got, port, layer, index, took, load)

    def _got(self, port: Port, layer: int, index: int, way: float, load: int) -> None:
        world, now = self.world, self.clock.now
        if port.far:
            world.crossings += 1
        if port.origin:
            world.origin_pieces += 1
        picker = self.pickers[layer]
        if picker is None or not picker.is_asked(port.id, index):
            world.wasted += 1
            return
        size = self._length
        port.pace.bytes_came(now)
        took = picker.arrived(port.id, index, now)
        port.pace.completed(size, took, way=way, load=load)
        self._settle(port)
        for peer in picker.verified(index):
            other = self.ports.get(peer)
            if other is not None:
                self._cancel(other, layer, index)
        self.have[layer] |= 1 << index
        self._last_piece = now
        self._feed_reader(now)
        for other in self.open[layer].values():
            other.host.has(other.back, layer, index)
        if not picker.missing:
            self.pickers[layer] = None
            self._layer_done(layer)
        if port.origin:
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
            picker = self.pickers[layer]
            if picker is not None:
                picker.set_reader("client", index + 1, now)

    def _layer_done(self, layer: int) -> None:
        self.world.announce(self, layer, complete=True, starved=False)
        self.candidates[layer].clear()
        if all(picker is None for picker in self.pickers):
            self.fetching = False
            self.done = self.clock.now
            self.world.finished(self)

    def has(self, port: Port, layer: int, index: int) -> None:
        """A peer has got a piece."""
        picker = self.pickers[layer]
        if picker is not None:
            if (
                picker.peer_has(port.id, index)
                and port.pace.in_flight == 0
                and self.intake.room()
                and (self.intake.spare() or picker.is_near(index, self.clock.now))
            ):
                self.clock.after(port.latency, self.fill, port)
        elif self.alive and (seeding := self.seedings[layer]) is not None:
            self._show(port, layer, seeding.has(port.id, index))

    def shown(self, port: Port, layer: int, pieces: int) -> None:
        """An origin shows pieces."""
        picker = self.pickers[layer]
        if picker is None or self.ports.get(port.id) is not port or not picker.knows(port.id):
            return
        for index in bitset.indices(pieces):
            picker.peer_has(port.id, index)
        self.fill(port)


def _standing(port: Port) -> Standing:
    wanted = max(port.last_wanted, port.back.last_wanted)
    busy = bool(port.pace.in_flight or port.back.pace.in_flight)
    return Standing(port.id, port.since, wanted, busy)
