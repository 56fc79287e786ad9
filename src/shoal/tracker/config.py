# SPDX-License-Identifier: Apache-2.0
"""Config of the tracker."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from shoal.config.model import ServiceConfig
from shoal.config.units import Address, Bytes, Duration
from shoal.ring.config import OriginsConfig

MEMORY = "memory"


def _store(value: str) -> str:
    if value == MEMORY:
        return value
    url = urlsplit(value)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        raise ValueError(f"{value!r} is neither {MEMORY} nor redis://host:port/db")
    if find_spec("redis") is None:
        raise ValueError("Redis needs the extra of that name: pip install 'shoal[redis]'")
    return value


def _masked(value: str) -> str:
    """The URL without its password."""
    scheme, _, rest = value.rpartition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}:***@{host}" if at else value


Store = Annotated[str, AfterValidator(_store), PlainSerializer(_masked, when_used="json")]
"""``memory``, or the URL of a Redis."""


class TrackerConfig(ServiceConfig):
    """One tracker."""

    listen: Address = "127.0.0.1:5004"

    origins: OriginsConfig

    announce_interval: Duration = 30.0
    """How often peers are told to announce themselves."""

    peer_ttl: Duration = 120.0
    """A peer that was not heard of for this long is forgotten."""

    handout: Annotated[int, Field(ge=1, le=200)] = 10
    """Peers in one answer, at most."""

    store: Store = MEMORY
    """Where the tracker keeps who has what: `memory`, or `redis://[user:password@]host:port/db`."""

    metainfo_cache: Bytes = 64 * 1024 * 1024
    """Bytes of metainfos kept in memory; those used longest ago go first."""

    metainfo_timeout: Duration = 10.0
    """Bound of one question to the origins for a metainfo."""

    origin_refresh: Duration = 30.0
    """How often the origins are asked again which of them have a blob that is being pulled."""

    request_timeout: Duration = 15.0
    """The deadline of a request that came without one."""

    @model_validator(mode="after")
    def _peers_live_to_announce(self) -> Self:
        if self.peer_ttl < 2 * self.announce_interval:
            raise ValueError(
                f"peer_ttl ({self.peer_ttl:g}s) must be at least twice announce_interval "
                f"({self.announce_interval:g}s), or one late announce loses a peer"
            )
        return self
