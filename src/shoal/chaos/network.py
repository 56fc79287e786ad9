# SPDX-License-Identifier: Apache-2.0
"""Relays before the services of a cluster, and the config that makes all others go through them."""

from __future__ import annotations

from typing import Any

from shoal.chaos.relay import Relay
from shoal.cluster.layout import HOST, Layout, Overrides, Shape
from shoal.config.units import split_address

RELAYED = ("origin", "tracker", "build-index")
"""The roles that others call. Proxies and agents are reached by clients alone."""


class Network:
    """One relay per service that others call, and one more for each origin's peers."""

    def __init__(self, shape: Shape) -> None:
        names = [name for name in shape.names() if name.rpartition("-")[0] in RELAYED]
        self._relays = {name: Relay() for name in names}
        self._peers = {name: Relay() for name in names if name.startswith("origin-")}

    async def listen(self) -> None:
        """Open all relays; they lead nowhere yet."""
        for relay in (*self._relays.values(), *self._peers.values()):
            await relay.listen(HOST)

    def overrides(self) -> Overrides:
        """What services are told: every address of another one is that of its relay."""
        hosts = {
            role: [r.address for name, r in self._relays.items() if name.startswith(f"{role}-")]
            for role in RELAYED
        }
        config: dict[str, dict[str, Any]] = {
            role: {"origins": {"hosts": hosts["origin"]}}
            for role in ("proxy", "origin", "tracker", "build-index", "agent")
        }
        for role in ("proxy", "origin", "agent"):
            config[role]["build_index"] = {"hosts": hosts["build-index"]}
        config["agent"]["tracker"] = {"hosts": hosts["tracker"]}
        for name, relay in self._relays.items():
            if name in self._peers:
                peer = {"advertise": self._peers[name].address}
                config[name] = {"name": relay.address, "peer": peer}
            elif name.startswith("build-index-"):
                others = [host for host in hosts["build-index"] if host != relay.address]
                config[name] = {"neighbours": others}
        return config

    def connect(self, layout: Layout) -> None:
        """Lead each relay to its service."""
        for member in layout.members:
            if member.name in self._relays:
                self._relays[member.name].lead_to(*split_address(member.config["listen"]))
            if member.name in self._peers:
                self._peers[member.name].lead_to(*split_address(member.config["peer"]["listen"]))

    def cut(self, name: str) -> None:
        """Cut one service off from all others."""
        for relay in self._of(name):
            relay.cut()

    def join(self, name: str) -> None:
        """Let it be reached again."""
        for relay in self._of(name):
            relay.join()

    async def close(self) -> None:
        """End all relays."""
        for relay in (*self._relays.values(), *self._peers.values()):
            await relay.close()

    def _of(self, name: str) -> list[Relay]:
        return [relays[name] for relays in (self._relays, self._peers) if name in relays]
