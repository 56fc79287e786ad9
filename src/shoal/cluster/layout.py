# SPDX-License-Identifier: Apache-2.0
"""Who listens where and keeps what in which folder: a plain function of a cluster's shape.

``shoal up`` reserves consecutive ports in blocks of 64. The first port of each block is its guard
(see `shoal.cluster.ports`), the services get the others in a fixed order, so the same shape at the
same base has the same addresses each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from shoal.config.units import is_loopback

HOST = "127.0.0.1"
BLOCK = 64
"""Ports in a block, its guard included."""

_PORTS_PER_SERVICE = {"proxy": 1, "origin": 2, "tracker": 1, "build-index": 1, "agent": 3}
_ADDRESS_KEYS = (("listen",), ("admin",), ("peer", "listen"))

Overrides = Mapping[str, Mapping[str, Any]]
"""Config by role (``agent``) or by service (``agent-0``), laid over what is generated."""


class LayoutError(Exception):
    """A cluster of this shape cannot be laid out."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many of each service there are."""

    proxies: int = 1
    origins: int = 3
    trackers: int = 1
    build_indexes: int = 1
    agents: int = 2

    def __post_init__(self) -> None:
        for role, number in self.counts().items():
            least = 0 if role in {"proxy", "agent"} else 1
            if number < least:
                raise LayoutError(f"a cluster needs at least {least} {role}, not {number}")

    def counts(self) -> dict[str, int]:
        """Services by role, in the order in which they get their ports."""
        return {
            "proxy": self.proxies,
            "origin": self.origins,
            "tracker": self.trackers,
            "build-index": self.build_indexes,
            "agent": self.agents,
        }

    def names(self) -> list[str]:
        """Every service's name, such as ``origin-0``."""
        return [f"{role}-{i}" for role, number in self.counts().items() for i in range(number)]

    def ports(self) -> int:
        """Ports to reserve: whole blocks, with their guards and the unused ones at the end."""
        needed = sum(_PORTS_PER_SERVICE[role] * n for role, n in self.counts().items())
        return -(-needed // (BLOCK - 1)) * BLOCK


@dataclass(frozen=True, slots=True)
class Member:
    """One service of the cluster: its config and its files."""

    name: str
    role: str
    config: dict[str, Any]
    config_path: Path
    log_path: Path

    def url(self, key: str = "listen") -> str:
        """Return the base URL of one of its addresses, as clients on this machine reach it."""
        host, _, port = str(self.config[key]).rpartition(":")
        scheme = "https" if self._is_over_tls(key) else "http"
        return f"{scheme}://{_LOOPBACK.get(host, host)}:{port}"

    @property
    def ca(self) -> str | None:
        """The file of those who issue the cluster's certificates, if it has any."""
        tls = self._tls()
        return str(tls["ca"]) if tls.get("certificate") and tls.get("ca") else None

    def _tls(self) -> Mapping[str, Any]:
        tls = self.config.get("tls")
        return tls if isinstance(tls, Mapping) else {}

    def _is_over_tls(self, key: str) -> bool:
        tls = self._tls()
        if not tls.get("certificate"):
            return False
        if self.role != "agent" or key != "listen":
            return True
        chosen = tls.get("registry")
        return not is_loopback(str(self.config[key])) if chosen is None else bool(chosen)

    @property
    def readiness_url(self) -> str:
        """Where it says whether it can do its job."""
        return self.url("admin" if "admin" in self.config else "listen") + "/readiness"

    def addresses(self) -> Iterator[str]:
        """Every address that it listens on."""
        for keys in _ADDRESS_KEYS:
            value: Any = self.config
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                yield str(value)


_LOOPBACK = {"0.0.0.0": HOST, "[::]": "[::1]"}  # noqa: S104 -- what "everywhere" is called from here


@dataclass(frozen=True, slots=True)
class Layout:
    """All services of a cluster."""

    data_dir: Path
    members: tuple[Member, ...]

    def of(self, role: str) -> list[Member]:
        """Return the services of one role."""
        return [member for member in self.members if member.role == role]

    def ready_document(self, pids: Mapping[str, int]) -> dict[str, Any]:
        """Return what the ready file says: base URLs by role, and process ids by name."""
        return {
            "proxies": [member.url() for member in self.of("proxy")],
            "origins": [member.url() for member in self.of("origin")],
            "trackers": [member.url() for member in self.of("tracker")],
            "build_indexes": [member.url() for member in self.of("build-index")],
            "agents": [
                {"registry": member.url(), "admin": member.url("admin")}
                for member in self.of("agent")
            ],
            "pids": dict(pids),
        }


def lay_out(
    shape: Shape, data_dir: Path, port_base: int, overrides: Overrides | None = None
) -> Layout:
    """Give each service its addresses, folders and config.

    `port_base` is the block's first port. Raises `LayoutError` when the block does not fit below
    65536, or when two services would listen on the same address.
    """
    if not 1 <= port_base <= 65536 - shape.ports():
        raise LayoutError(
            f"port base {port_base}: {shape.ports()} ports from there do not lie within 1 to 65535"
        )
    addresses = _addresses(shape, port_base)
    members = []
    for role, number in shape.counts().items():
        for index in range(number):
            name = f"{role}-{index}"
            config = _generated(role, name, shape, data_dir, addresses)
            for section in (role, name):
                config = merge(config, (overrides or {}).get(section, {}))
            members.append(
                Member(
                    name,
                    role,
                    config,
                    config_path=data_dir / "config" / f"{name}.yaml",
                    log_path=data_dir / "logs" / f"{name}.log",
                )
            )
    _refuse_shared_addresses(members)
    return Layout(data_dir, tuple(members))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _addresses(shape: Shape, port_base: int) -> dict[str, list[str]]:
    ports = (port for port in count(port_base) if (port - port_base) % BLOCK)
    return {
        f"{role}-{index}": [f"{HOST}:{next(ports)}" for _ in range(_PORTS_PER_SERVICE[role])]
        for role, number in shape.counts().items()
        for index in range(number)
    }


def _generated(
    role: str, name: str, shape: Shape, data_dir: Path, addresses: Mapping[str, list[str]]
) -> dict[str, Any]:
    def hosts(of: str) -> list[str]:
        return [addresses[f"{of}-{index}"][0] for index in range(shape.counts()[of])]

    own = addresses[name]
    config: dict[str, Any] = {"listen": own[0]}
    if role == "agent":
        config |= {
            "admin": own[1],
            "peer": {"listen": own[2]},
            "tracker": {"hosts": hosts("tracker")},
        }
    if role == "origin":
        config["peer"] = {"listen": own[1]}
    if role != "tracker":
        config["data_dir"] = str(data_dir / "data" / name)
    if role in {"proxy", "agent", "origin"}:
        config["build_index"] = {"hosts": hosts("build-index")}
    if role in {"proxy", "build-index"}:
        config["neighbours"] = [host for host in hosts(role) if host != own[0]]
    if role == "proxy" and config["neighbours"]:
        # Also when `listen` is overridden, by every interface for one.
        config["name"] = own[0]
    config["origins"] = {"hosts": hosts("origin"), **_copies(shape.origins)}
    return config


def _copies(origins: int) -> dict[str, int]:
    # A ring smaller than the defaults ask for cannot hold that many copies.
    return {} if origins >= 3 else {"replicas": origins, "write_quorum": origins}


def _refuse_shared_addresses(members: list[Member]) -> None:
    holders: dict[str, str] = {}
    for member in members:
        for address in member.addresses():
            holder = holders.setdefault(address, member.name)
            if holder != member.name:
                raise LayoutError(
                    f"{holder} and {member.name} would both listen on {address}: "
                    "give each its own address, in a section named for the service"
                )
