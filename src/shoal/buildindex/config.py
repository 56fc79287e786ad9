# SPDX-License-Identifier: Apache-2.0
"""Config of the build-index."""

from __future__ import annotations

from pathlib import Path

from shoal.config.model import ServiceConfig
from shoal.config.units import Address, Duration
from shoal.ring.config import OriginsConfig


class BuildIndexConfig(ServiceConfig):
    """One build-index."""

    listen: Address = "127.0.0.1:5006"

    data_dir: Path
    origins: OriginsConfig

    neighbours: tuple[Address, ...] = ()
    """The other build-indexes of this cluster. Naming this one, too, does no harm."""

    neighbour_timeout: Duration = 2.0
    """How long a push waits for a neighbour to take the tag. A neighbour that does not is told
    later."""

    sync_interval: Duration = 2.0
    """How often each neighbour is asked for the changes that did not reach this one."""

    catch_up_timeout: Duration = 5.0
    """How long a start waits for the neighbours' changes before it serves what it has."""

    request_timeout: Duration = 30.0
    """The deadline of a request that came without one."""
