# SPDX-License-Identifier: Apache-2.0
"""Config of the proxy."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from shoal.config.model import Clients, Config, ServiceConfig, TlsConfig
from shoal.config.units import Address, Bytes, Duration, format_duration, split_address
from shoal.queue.config import QueueConfig
from shoal.ring.config import HostsConfig, OriginsConfig

MANIFEST_TIME = 4.0
"""Seconds of a manifest's PUT in which the origins store the manifest itself."""


class PushMode(StrEnum):
    """When a blob that is pushed is acknowledged."""

    WRITE_THROUGH = "write_through"
    """When the write quorum of origins has it."""
    WRITE_BACK = "write_back"
    """When it is verified and durable on the proxy, which delivers it to the write quorum."""


class PushRule(Config):
    """How pushes to some repositories are taken."""

    pattern: Annotated[str, Field(min_length=1)]
    """A regular expression, looked for anywhere in the repository's name."""

    mode: PushMode

    await_delivery: bool = True
    """Whether a manifest waits for the delivery of what it needs. False is the manner of registries
    that lose the race between a tag and its blobs; `shoal bench race` measures it."""

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _delivery_is_of_write_back(self) -> Self:
        if not self.await_delivery and self.mode is not PushMode.WRITE_BACK:
            raise ValueError("await_delivery: false is only for mode write_back")
        return self


class ProxyTlsConfig(TlsConfig):
    """As everywhere; but container clients have no certificate, as a rule."""

    clients: Clients = "optional"


class ProxyConfig(ServiceConfig):
    """One proxy."""

    listen: Address = "127.0.0.1:5000"

    tls: ProxyTlsConfig = ProxyTlsConfig()

    name: Address | None = None
    """How the other proxies call this one in their `neighbours`; by default what it listens on. It
    stands in the ids of uploads, so that any proxy can hand a request on to the one it is for."""

    data_dir: Path
    """Uploads lie here while they are received, and in write_back until they are delivered."""

    origins: OriginsConfig
    build_index: HostsConfig

    neighbours: tuple[Address, ...] = ()
    """The other proxies of this cluster: a manifest that is pushed here waits for what they are
    still to deliver, and requests for uploads that they hold are handed on to them. Naming this
    one, too, does no harm."""

    upstreams: tuple[str, ...] = ()
    """The names of the build-indexes' `upstreams`: ``?ns=`` and path prefixes that mean them."""

    push: tuple[PushRule, ...] = ()
    """The first rule whose pattern matches holds; write_through where none does."""

    delivery: QueueConfig = QueueConfig()
    """The queue that delivers what was acknowledged in write_back."""

    request_timeout: Duration = 28.0
    """The deadline of a request that came without one; neither receiving a body nor the bytes of a
    large blob count against it. Below the 30 s after which containerd gives up."""

    index_retries: Duration = 7.5
    """The longest that a build-index retries before it refuses a tag: the waits of its
    ``resolver.manifest`` and ``resolver.existence`` together."""

    upload_idle_timeout: Duration = 30.0
    """How long a client may send nothing in the middle of a body."""

    upload_ttl: Duration = 24 * 3600.0
    """An upload to which nothing was written for this long is dropped."""

    manifest_cache: Bytes = 64 * 1024 * 1024
    """Memory for the manifests that were read or pushed last; 0: none is kept."""

    @property
    def known_as(self) -> str:
        """How the other proxies call this one."""
        return self.name or self.listen

    @property
    def tag_time(self) -> float:
        """Seconds of a manifest's PUT that are not spent on waiting for deliveries."""
        return MANIFEST_TIME + self.index_retries

    @model_validator(mode="after")
    def _a_name_for_the_neighbours(self) -> Self:
        if self.neighbours and self.name is None and _is_everywhere(self.listen):
            raise ValueError(
                f"name must be set: the neighbours do not call this proxy {self.listen}, and "
                "could not hand on requests for the uploads that it holds"
            )
        return self

    @model_validator(mode="after")
    def _time_for_the_retries(self) -> Self:
        # Each build-index that may have to be asked gets an equal part of what is left.
        # How many the DNS will name is not known: one at least.
        indexes = len(self.build_index.hosts) or 1
        needed = MANIFEST_TIME + indexes * self.index_retries
        if self.request_timeout < needed:
            raise ValueError(
                f"request_timeout ({format_duration(self.request_timeout)}) must be at least "
                f"{format_duration(needed)}: {format_duration(MANIFEST_TIME)} to store a manifest, "
                f"and index_retries ({format_duration(self.index_retries)}) for each of "
                f"{indexes} build-index(es), or a push is given up while it is still being retried"
            )
        return self


class PushModes:
    """Which rule holds for a repository."""

    def __init__(self, rules: tuple[PushRule, ...] = ()) -> None:
        self._rules = [(re.compile(rule.pattern), rule) for rule in rules]

    def of(self, repository: str) -> PushRule:
        """The first rule that matches, or write_through."""
        for pattern, rule in self._rules:
            if pattern.search(repository):
                return rule
        return _DEFAULT

    @property
    def write_back(self) -> bool:
        """Whether a rule asks for it."""
        return any(rule.mode is PushMode.WRITE_BACK for _, rule in self._rules)


def _is_everywhere(address: str) -> bool:
    host, port = split_address(address)
    return host in {"0.0.0.0", "::"} or port == 0  # noqa: S104 compared, not listened on


_DEFAULT = PushRule(pattern=".*", mode=PushMode.WRITE_THROUGH)
