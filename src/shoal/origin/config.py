# SPDX-License-Identifier: Apache-2.0
"""Config of the origin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from shoal.config.model import Config, ServiceConfig
from shoal.config.units import Address, Bytes, Duration
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.swarm.config import PeerConfig


class GcConfig(Config):
    """When blobs go that no repository needs any more."""

    grace: Annotated[Duration, Field(gt=0)] = 24 * 3600.0
    """A blob that was used within it stays. Keep it well above the time that a push takes."""

    interval: Duration = 3600.0
    """Between two sweeps; 0: only when asked by ``shoal gc``."""


class OriginConfig(ServiceConfig):
    """An origin: a member of the ring that keeps and seeds blobs."""

    listen: Address = "127.0.0.1:5002"

    data_dir: Path
    peer: PeerConfig = PeerConfig(listen="127.0.0.1:5003")
    zone: str = ""
    """Where this host is; peers of the same zone are preferred."""

    origins: OriginsConfig
    """All members of the ring, this one included."""

    build_index: HostsConfig | None = None
    """All build-indexes: those that say which blobs are needed. Without them none is removed."""

    gc: GcConfig = GcConfig()

    name: Address | None = None
    """How the list of members calls this origin; by default as it listens."""

    request_timeout: Duration = 60.0
    """The deadline of a request that came without one. Bodies may take longer while they flow."""

    idle_timeout: Duration = 30.0
    """A client that sends nothing for this long while it uploads is dropped."""

    upload_ttl: Duration = 24 * 3600.0
    """A chunked upload that nobody has continued for this long is forgotten."""

    max_blob: Bytes = 0
    """The largest blob taken; 0 for no limit."""

    @model_validator(mode="after")
    def _is_a_member(self) -> Self:
        if self.member not in self.origins.hosts:
            raise ValueError(
                f"this origin calls itself {self.member}, which origins.hosts does not list: "
                "set name to what the list calls it"
            )
        return self

    @property
    def member(self) -> str:
        """This origin's name in the ring."""
        return self.name or self.listen
