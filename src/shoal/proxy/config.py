# SPDX-License-Identifier: Apache-2.0
"""Config of the proxy."""

from __future__ import annotations

from pathlib import Path

from shoal.config.model import ServiceConfig
from shoal.config.units import Address, Duration
from shoal.ring.config import HostsConfig, OriginsConfig


class ProxyConfig(ServiceConfig):
    """One proxy."""

    listen: Address = "127.0.0.1:5000"

    data_dir: Path
    """Uploads lie here while they are received; nothing stays once the origins have it."""

    origins: OriginsConfig
    build_index: HostsConfig

    request_timeout: Duration = 60.0
    """The deadline of a request that came without one; neither receiving a body nor the
    bytes of a large blob count against it."""

    upload_idle_timeout: Duration = 30.0
    """How long a client may send nothing in the middle of a body."""

    upload_ttl: Duration = 24 * 3600.0
    """An upload to which nothing was written for this long is dropped."""
