# SPDX-License-Identifier: Apache-2.0
"""Config of the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from shoal.config.model import Config, ServiceConfig, TlsConfig
from shoal.config.units import Address, Bytes, Duration, is_loopback
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.store.config import CacheConfig
from shoal.swarm.config import PeerConfig


class AgentTlsConfig(TlsConfig):
    """As everywhere, for `admin`; and what this host's container runtime speaks."""

    registry: bool | None = None
    """Whether `listen` is over TLS, too; by default when it is not on loopback."""


class PreloadConfig(Config):
    """Which container runtimes of this host the agent may tell to pull images; by default none.

    Whoever reaches the admin endpoint can then fill their disks with what the cluster has.
    """

    docker_socket: Path | None = None
    """Where docker listens, such as ``/var/run/docker.sock``."""

    containerd_socket: Path | None = None
    """Where containerd listens, such as ``/run/containerd/containerd.sock``."""

    ctr: Annotated[str, Field(min_length=1)] = "ctr"
    """containerd's command: a name on the agent's PATH, or a path."""

    timeout: Annotated[Duration, Field(gt=0)] = 600.0
    """For one image; a runtime that takes longer is stopped."""

    concurrency: Annotated[int, Field(ge=1)] = 2
    """Images that are pulled at the same time; further ones wait."""


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

    preload: PreloadConfig = PreloadConfig()

    @property
    def registry_tls(self) -> bool:
        """Whether the registry speaks TLS."""
        chosen = self.tls.registry
        return self.tls.on and (not is_loopback(self.listen) if chosen is None else chosen)
