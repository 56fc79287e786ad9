# SPDX-License-Identifier: Apache-2.0
"""Config of the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from shoal.config.model import ServiceConfig, TlsConfig
from shoal.config.units import Address, Bytes, Duration, is_loopback
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.store.config import CacheConfig
from shoal.swarm.config import PeerConfig


class AgentTlsConfig(TlsConfig):
    """As everywhere, for `admin`; and what this host's container runtime speaks."""

    registry: bool | None = None
    """Whether `listen` is over TLS, too; by default when it is not on loopback."""


class AgentConfig(ServiceConfig):
    """One agent."""

    listen: Address = "127.0.0.1:5010"
    """The registry that this host's container runtime pulls from."""

    admin: Address = "127.0.0.1:5011"
    """Generic blobs, tags, and what the agent knows of its swarm."""

    tls: AgentTlsConfig = AgentTlsConfig()

    data_dir: Path
    """The cache: complete blobs, and partial ones that go on after a restart."""

    cache: CacheConfig = CacheConfig()
    """How large the cache may grow. Blobs that were used longest ago make room for others."""

    peer: PeerConfig = PeerConfig()

    zone: Annotated[str, Field(max_length=255)] = ""
    """Where this host is, as far as network cost goes."""

    tracker: HostsConfig
    build_index: HostsConfig
    origins: OriginsConfig
    """Where small blobs come from, and all others when neither tracker nor peers are to be had."""

    upstreams: tuple[str, ...] = ()
    """The names of the build-indexes' `upstreams`: ``?ns=`` and path prefixes that mean them."""

    request_timeout: Duration = 30.0
    """The deadline for all that is asked of other services before the first byte of an answer."""

    stall_timeout: Duration = 60.0
    """A download to which nothing came for this long has failed; what is there is kept."""

    manifest_cache: Bytes = 16 * 1024 * 1024
    """Memory for the manifests that were pulled last; 0: they are read from the disk each time."""

    manifest_ttl: Annotated[Duration, Field(gt=0)] = 3600.0
    """A manifest that is in memory leaves it after this time; the disk has it still."""

    @property
    def registry_tls(self) -> bool:
        """Whether the registry speaks TLS."""
        chosen = self.tls.registry
        return self.tls.on and (not is_loopback(self.listen) if chosen is None else chosen)
