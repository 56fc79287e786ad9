# SPDX-License-Identifier: Apache-2.0
"""Config of lists of hosts, and of the origins' ring."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from shoal.config.model import Config
from shoal.config.units import Address


class HostsConfig(Config):
    """A static list of hosts, each ``host:port``."""

    hosts: Annotated[list[Address], Field(min_length=1)]

    @field_validator("hosts")
    @classmethod
    def _each_once(cls, hosts: list[str]) -> list[str]:
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            raise ValueError(f"listed more than once: {', '.join(twice)}")
        return hosts


class OriginsConfig(HostsConfig):
    """The origins' ring: its members, and how many of them keep each blob."""

    replicas: Annotated[int, Field(ge=1)] = 3
    """Copies of each blob."""

    write_quorum: Annotated[int, Field(ge=1)] = 2
    """Copies that must be verified and on stable storage before a push is acknowledged."""

    @model_validator(mode="after")
    def _quorum_within_replicas(self) -> Self:
        if self.write_quorum > self.replicas:
            raise ValueError(
                f"write_quorum ({self.write_quorum}) must not be above replicas ({self.replicas})"
            )
        return self
