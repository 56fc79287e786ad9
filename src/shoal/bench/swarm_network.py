# SPDX-License-Identifier: Apache-2.0
"""A host for each agent and origin: network namespaces on a bridge, their links limited by tbf.

Needs root. What is made here is named for this process and taken away again; nothing else is
touched. Clients run in the namespace of their agent, so that only what peers and services send goes
over the limited links.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from shoal.cluster.layout import Shape

_ADMIN, _REGISTRY, _PEERS, _ORIGIN = 5011, 5010, 5012, 5002
_BURST = "256kb"
_BACKLOG = "1mb"
_PREFIX = 24
_BLOCK = ipaddress.ip_network("10.231.0.0/16")


class NetworkFailed(Exception):
    """The network could not be built; the message has the command and what it said."""


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace and its link to the bridge."""

    service: str
    namespace: str
    outside: str
    """The bridge's end of its link."""

    address: str


@dataclass(frozen=True, slots=True)
class Network:
    """Hosts for the agents and origins of a cluster; the other services are beside the bridge."""

    hosts: tuple[Host, ...]
    rate: float
    overrides: dict[str, dict[str, Any]]
    """The addresses of all services, to be laid over the config of the cluster."""

    @property
    def launchers(self) -> dict[str, Sequence[str]]:
        """What starts a service on its host."""
        return {host.service: _inside(host.namespace) for host in self.hosts}

    async def limit(self) -> None:
        """Limit every host to the rate in each direction."""
        tbf = ("tbf", "rate", f"{round(8 * self.rate)}bit", "burst", _BURST, "limit", _BACKLOG)
        for host in self.hosts:
            await _run("tc", "-n", host.namespace, "qdisc", "add", "dev", "eth0", "root", *tbf)
            await _run("tc", "qdisc", "add", "dev", host.outside, "root", *tbf)

    async def unlimit(self) -> None:
        """Lift the limit, so that the next blob is pushed at full speed."""
        for host in self.hosts:
            await _run("tc", "-n", host.namespace, "qdisc", "del", "dev", "eth0", "root")
            await _run("tc", "qdisc", "del", "dev", host.outside, "root")


@asynccontextmanager
async def network(shape: Shape, rate: float) -> AsyncIterator[Network]:
    """Build the hosts of a cluster, not limited yet; raises `NetworkFailed`."""
    if os.geteuid() != 0:
        raise NetworkFailed(
            "network namespaces need root; without --netns the limit is Shoal's own"
        )
    if max(shape.agents, shape.origins) > 100:
        raise NetworkFailed("at most 100 agents and origins fit into one network")
    subnet = await _free_subnet()
    tag = f"shb{os.getpid()}"
    bridge = f"{tag}b"
    net = plan(shape, rate, subnet, tag)
    made: list[tuple[str, ...]] = []
    try:
        made.append(("link", "del", bridge))
        await _run("ip", "link", "add", bridge, "type", "bridge")
        await _run("ip", "addr", "add", f"{subnet[1]}/{_PREFIX}", "dev", bridge)
        await _run("ip", "link", "set", bridge, "up")
        for host in net.hosts:
            made.append(("netns", "del", host.namespace))
            await _run("ip", "netns", "add", host.namespace)
            pair = ("type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            await _run("ip", "link", "add", host.outside, *pair)
            await _run("ip", "link", "set", host.outside, "master", bridge, "up")
            inside = ("ip", "-n", host.namespace)
            await _run(*inside, "addr", "add", f"{host.address}/{_PREFIX}", "dev", "eth0")
            await _run(*inside, "link", "set", "eth0", "up")
            await _run(*inside, "link", "set", "lo", "up")
        yield net
    finally:
        for command in reversed(made):
            await _run("ip", *command, check=False)


def plan(shape: Shape, rate: float, subnet: ipaddress.IPv4Network, tag: str) -> Network:
    """Who listens where. The clients' side of an agent is on its own loopback."""
    outside = str(subnet[1])
    ports = count(5020)
    roles = {role: [f"{role}-{i}" for i in range(n)] for role, n in shape.counts().items()}
    beside = {
        name: f"{outside}:{next(ports)}"
        for role in ("proxy", "tracker", "build-index")
        for name in roles[role]
    }
    inside = {name: str(subnet[10 + i]) for i, name in enumerate(roles["origin"])}
    inside |= {name: str(subnet[120 + i]) for i, name in enumerate(roles["agent"])}
    hosts = tuple(
        Host(name, f"{tag}-{name}", f"{tag}v{i}", inside[name]) for i, name in enumerate(inside)
    )
    origins = {"hosts": [f"{inside[name]}:{_ORIGIN}" for name in roles["origin"]]}
    index = {"hosts": [beside[name] for name in roles["build-index"]]}
    trackers = {"hosts": [beside[name] for name in roles["tracker"]]}
    overrides: dict[str, dict[str, Any]] = {role: {"origins": origins} for role in roles}
    for role in ("proxy", "origin", "agent"):
        overrides[role]["build_index"] = index
    overrides["agent"]["tracker"] = trackers
    for name, address in beside.items():
        overrides[name] = {"listen": address}
    for name in roles["origin"]:
        address = inside[name]
        overrides[name] = {
            "listen": f"{address}:{_ORIGIN}",
            "peer": {"listen": f"{address}:{_PEERS}"},
        }
    for i, name in enumerate(roles["agent"]):
        address = inside[name]
        overrides[name] = {
            "listen": f"127.0.0.1:{_REGISTRY + 100 + i}",
            "admin": f"{address}:{_ADMIN}",
            "peer": {"listen": f"{address}:{_PEERS}"},
        }
    return Network(hosts, rate, overrides)


def _inside(namespace: str) -> Sequence[str]:
    return ("nsenter", f"--net=/run/netns/{namespace}", "--")


async def _free_subnet() -> ipaddress.IPv4Network:
    """A subnet to which this machine has no route but its default one."""
    routes = json.loads(await _run("ip", "-j", "-4", "route", "show", "table", "all"))
    taken = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in routes
        if route.get("dst", "default") != "default"
    ]
    for subnet in _BLOCK.subnets(new_prefix=_PREFIX):
        if not any(subnet.overlaps(other) for other in taken if other.version == 4):
            return ipaddress.IPv4Network(subnet)
    raise NetworkFailed(f"all of {_BLOCK} has routes")


async def _run(*command: str, check: bool = True) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise NetworkFailed(f"{' '.join(command)}: {error.strerror}") from error
    out, complaint = await process.communicate()
    if check and process.returncode != 0:
        raise NetworkFailed(f"{' '.join(command)}: {complaint.decode(errors='replace').strip()}")
    return out.decode()
