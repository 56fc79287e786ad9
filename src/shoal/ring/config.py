# SPDX-License-Identifier: Apache-2.0
"""Config of lists of hosts, and of the origins' ring."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from shoal.config.model import Config
from shoal.config.units import Address, Duration, split_address


def _nameserver(address: str) -> str:
    host, _ = split_address(address)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{address}: a name server is given by its IP address, such as 127.0.0.1:8600"
        ) from None
    return address


class HostsConfig(Config):
    """A list of hosts: written down, or found by DNS and followed while the service runs."""

    hosts: list[Address] = Field(default_factory=list)
    """The list itself, each ``host:port``."""

    dns: Address | None = None
    """``name:port``: every address (A and AAAA) of the name is a host, at that port."""

    srv: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """A name with SRV records (RFC 2782): every target is a host, at the record's port."""

    nameservers: list[Annotated[Address, AfterValidator(_nameserver)]] = Field(default_factory=list)
    """DNS servers, ``ip:port``, to ask for `dns` or `srv` instead of those of the system."""

    @field_validator("hosts")
    @classmethod
    def _each_once(cls, hosts: list[str]) -> list[str]:
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            raise ValueError(f"listed more than once: {', '.join(twice)}")
        return hosts

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        given = [key for key in ("hosts", "dns", "srv") if getattr(self, key)]
        if len(given) != 1:
            have = f"{' and '.join(given)} are set" if given else "none of them is set"
            raise ValueError(f"exactly one of hosts, dns and srv must be set; {have}")
        if self.nameservers and self.hosts:
            raise ValueError("nameservers is for dns and srv: a list of hosts is not asked for")
        return self

    @property
    def moves(self) -> bool:
        """Whether the list may change while the service runs."""
        return not self.hosts


class HealthConfig(Config):
    """How the members of the ring are checked."""

    interval: Duration = 3.0
    """Between two checks of a member; 0: none is checked, only failures of real calls count."""

    timeout: Annotated[Duration, Field(gt=0)] = 2.0
    """A member that has not answered a check after it has failed it."""

    fails: Annotated[int, Field(ge=1)] = 3
    """Checks that a member fails in a row until it counts as unhealthy."""

    passes: Annotated[int, Field(ge=1)] = 2
    """Checks that it passes in a row until it counts as healthy again."""


class OriginsConfig(HostsConfig):
    """The origins' ring: its members, and how many of them keep each blob."""

    replicas: Annotated[int, Field(ge=1)] = 3
    """Copies of each blob."""

    write_quorum: Annotated[int, Field(ge=1)] = 2
    """Copies that must be verified and on stable storage before a push is acknowledged."""

    weights: dict[Address, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """Shares of the blobs, by member and relative to 1, the weight of one that is not named."""

    health: HealthConfig = HealthConfig()

    @model_validator(mode="after")
    def _quorum_within_replicas(self) -> Self:
        if self.write_quorum > self.replicas:
            raise ValueError(
                f"write_quorum ({self.write_quorum}) must not be above replicas ({self.replicas})"
            )
        return self

    @model_validator(mode="after")
    def _weights_of_members(self) -> Self:
        # Whom DNS will name cannot be known here.
        strangers = sorted(self.weights.keys() - set(self.hosts)) if self.hosts else []
        if strangers:
            raise ValueError(f"weights names what hosts does not list: {', '.join(strangers)}")
        return self
