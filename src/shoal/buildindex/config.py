# SPDX-License-Identifier: Apache-2.0
"""Config of the build-index."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from shoal.backend.config import BackendsConfig
from shoal.backend.upstreams import UpstreamsConfig
from shoal.buildindex.dependencies import MAX_DEPENDENCIES, MAX_DEPTH
from shoal.config.model import Config, ServiceConfig
from shoal.config.units import Address, Duration
from shoal.model.manifest import IndexChildren
from shoal.queue.config import QueueConfig
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import OriginsConfig


class ResolverConfig(Config):
    """How a push is checked before its tag is taken."""

    manifest: RetryPolicy = RetryPolicy()
    """How often a manifest that came without its bytes is asked for."""

    existence: RetryPolicy = RetryPolicy()
    """How often dependencies that are not there, or not in enough copies, are looked for."""

    attempt_timeout: Annotated[Duration, Field(gt=0)] = 10.0
    """How long one attempt may take: an origin that hangs does not use up the caller's time."""

    index_children: IndexChildren = "required"
    """What an index needs of its children, unless the request says it."""

    max_depth: Annotated[int, Field(ge=1, le=64)] = MAX_DEPTH
    """Manifests on the longest way from the tagged one to a leaf, both included."""

    max_count: Annotated[int, Field(ge=1, le=1_000_000)] = MAX_DEPENDENCIES
    """Blobs and manifests that one push may need."""


class GcConfig(Config):
    """When records that nothing needs any more are deleted."""

    grace: Annotated[Duration, Field(gt=0)] = 24 * 3600.0
    """How long what nothing refers to stays. No push takes so long: what a push relies on is
    renewed when it is older than half of this."""

    interval: Duration = 3600.0
    """How often garbage is collected; 0: only when it is asked for."""

    untagged: Literal["keep", "remove"] = "keep"
    """What becomes of manifests that no tag, index or referrer relation reaches."""


class ReadThroughConfig(Config):
    """How what is in no record is looked up in backends and upstreams."""

    negative: Duration = 10.0
    """For how long it is repeated that a backend does not have something; upstreams have a setting
    of their own. A push ends it at once."""

    failure: Duration = 2.0
    """For how long a backend or upstream that failed is not asked for the same again, unless it
    says itself when to come back."""

    timeout: Annotated[Duration, Field(gt=0)] = 20.0
    """For one look, the manifest included."""


class WritebackConfig(QueueConfig):
    """The queue that writes tags, and what belongs to which repository, to the backends."""

    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """For one write to a backend."""

    stagger: Duration = 30.0
    """After this time what a neighbour took is written here, if the neighbour has not done it."""


class TagTypeConfig(Config):
    """Tags of one type."""

    pattern: str
    """A regular expression, looked for anywhere in ``repository:tag``."""

    type: Literal["docker", "default"]
    """``docker``: an image or an index, which needs what it names. ``default``: anything; only the
    digest itself must be there."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class BuildIndexConfig(ServiceConfig):
    """One build-index."""

    listen: Address = "127.0.0.1:5006"

    data_dir: Path
    origins: OriginsConfig

    resolver: ResolverConfig = ResolverConfig()

    tag_types: tuple[TagTypeConfig, ...] = (TagTypeConfig(pattern=".*", type="docker"),)
    """The first pattern that matches decides; what none matches is ``docker``."""

    neighbours: tuple[Address, ...] = ()
    """The other build-indexes of this cluster. Naming this one, too, does no harm."""

    neighbour_timeout: Duration = 2.0
    """How long a write waits for a neighbour to take it. A neighbour that does not is told
    later."""

    sync_interval: Duration = 2.0
    """How often each neighbour is asked for the changes that did not reach this one."""

    catch_up_timeout: Duration = 5.0
    """How long a start waits for the neighbours' changes before it serves what it has."""

    gc: GcConfig = GcConfig()

    tombstone_ttl: Annotated[Duration, Field(gt=0)] = 30 * 86400.0
    """How long a deletion is remembered. A build-index that was away for longer must be started
    with an empty data_dir, or it brings back what was deleted."""

    backends: BackendsConfig = ()
    """Where tags, and what belongs to which repository, are kept besides: written after a push was
    acknowledged, and asked for what no record knows."""

    upstreams: UpstreamsConfig = Field(default_factory=dict)
    """Registries whose repositories are pulled through, by name; ``_default`` is any other one."""

    read_through: ReadThroughConfig = ReadThroughConfig()

    writeback: WritebackConfig = WritebackConfig()

    request_timeout: Duration = 30.0
    """The deadline of a request that came without one."""
