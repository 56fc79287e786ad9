# SPDX-License-Identifier: Apache-2.0
"""Config of the origin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from shoal.backend.config import BackendsConfig
from shoal.backend.upstreams import UpstreamsConfig
from shoal.config.model import Config, ServiceConfig
from shoal.config.units import Address, Bytes, Duration, Rate
from shoal.queue.config import QueueConfig
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.store.config import CacheConfig, VolumeConfig
from shoal.swarm.config import PeerConfig


class GcConfig(Config):
    """When blobs go that no repository needs any more."""

    grace: Annotated[Duration, Field(gt=0)] = 24 * 3600.0
    """A blob that was used within it stays. Keep it well above the time that a push takes."""

    interval: Duration = 3600.0
    """Between two sweeps; 0: only when asked by ``shoal gc``."""


class WriteBackConfig(QueueConfig):
    """How what was pushed is written to the backends."""

    retry: RetryPolicy = RetryPolicy(initial=1.0, cap=300.0, jitter=0.2)

    stagger: Duration = 30.0
    """The first owner of a blob writes at once, each further one looks so much later whether it is
    there, and writes it if not and none before it answers that it is still to do so."""


class RefreshConfig(Config):
    """How blobs that no origin has are fetched from backends and upstream registries."""

    negative: Duration = 10.0
    """For this long a backend is not asked again for what it did not have, or had damaged."""

    concurrency: Annotated[int, Field(ge=1)] = 16
    """Blobs that one origin fetches at the same time; further ones wait."""

    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """For a backend to begin its answer."""


class RepairConfig(Config):
    """How copies are made that are missing, and given up that are in excess."""

    bandwidth: Rate = 100e6
    """Bytes per second that this origin sends for it; 0: no limit."""

    concurrency: Annotated[int, Field(ge=1)] = 4
    """Copies that this origin sends at the same time."""

    interval: Annotated[Duration, Field(gt=0)] = 600.0
    """Between two looks at all copies, when nothing calls for one earlier."""

    takeover: Annotated[Duration, Field(gt=0)] = 300.0
    """A holder acts when each one before it in the ring's order has had so long to do so."""

    spare_grace: Duration = 3600.0
    """A copy of which this origin is no owner goes when nobody has used it, and the ring has not
    changed, for so long, and every owner has the blob."""

    disk_check: Annotated[Duration, Field(gt=0)] = 5.0
    """Between two looks whether the folders of the blobs are still there."""


class ScrubConfig(Config):
    """How what is on disk is read again and checked."""

    bandwidth: Rate = 10e6
    """Bytes per second that are read for it at most; 0: no scrub."""

    interval: Duration = 30 * 24 * 3600.0
    """From the begin of one scrub of all blobs to that of the next; 0: no scrub."""


class OriginConfig(ServiceConfig):
    """An origin: a member of the ring that keeps and seeds blobs."""

    listen: Address = "127.0.0.1:5002"

    data_dir: Path

    volumes: tuple[VolumeConfig, ...] = ()
    """Folders on further disks over which blobs are spread; `data_dir` is one with the weight 1
    unless it is named here, too."""

    cache: CacheConfig = CacheConfig()
    """When copies that a backend has, too, make room for others."""

    peer: PeerConfig = PeerConfig(listen="127.0.0.1:5003")
    zone: str = ""
    """Where this host is; peers of the same zone are preferred."""

    origins: OriginsConfig
    """All members of the ring, this one included."""

    build_index: HostsConfig | None = None
    """All build-indexes: those that say which blobs are needed. Without them none is removed."""

    gc: GcConfig = GcConfig()
    repair: RepairConfig = RepairConfig()
    scrub: ScrubConfig = ScrubConfig()

    backends: BackendsConfig = ()
    """Where blobs are kept besides the origins: the first entry that matches a repository is its.
    With any that holds blobs, a push to a repository that matches none is refused."""

    upstreams: UpstreamsConfig = Field(default_factory=dict)
    """Registries that are pulled through, by their names; `_default` stands for all others."""

    writeback: WriteBackConfig = WriteBackConfig()
    refresh: RefreshConfig = RefreshConfig()

    memory_cache: Bytes = 32 * 1024 * 1024
    """Memory for the manifests and other small blobs that were read last; 0: none is kept."""

    memory_ttl: Annotated[Duration, Field(gt=0)] = 60.0
    """A small blob that is in memory leaves it after this time; the disk has it still."""

    name: Address | None = None
    """How the list of members calls this origin; by default as it listens."""

    join_timeout: Annotated[Duration, Field(gt=0)] = 60.0
    """How long an origin whose list comes from the DNS waits at its start to be named there."""

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
        # Whom DNS names is seen after the start (`shoal.origin.joining`).
        if self.origins.hosts and self.member not in self.origins.hosts:
            raise ValueError(
                f"this origin calls itself {self.member}, which origins.hosts does not list: "
                "set name to what the list calls it"
            )
        return self

    @property
    def member(self) -> str:
        """This origin's name in the ring."""
        return self.name or self.listen
