# SPDX-License-Identifier: Apache-2.0
"""Which backend a repository's blobs and tags are kept in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from shoal.backend.bandwidth import LimitedBackend, Meter
from shoal.backend.base import Backend, Name
from shoal.backend.config import (
    AzureBackendConfig,
    BackendConfig,
    GcsBackendConfig,
    Held,
    HttpBackendConfig,
    LocalBackendConfig,
    MemoryBackendConfig,
    PlaceConfig,
    RegistryBackendConfig,
    S3BackendConfig,
    ShadowBackendConfig,
    SqlBackendConfig,
    WebHdfsBackendConfig,
    layout_of,
)
from shoal.backend.local import LocalBackend
from shoal.backend.object_stores import open_azure, open_gcs, open_memory, open_s3
from shoal.backend.plain_http import PlainHttpBackend
from shoal.backend.registry import RegistryBackend
from shoal.backend.shadow import ShadowBackend
from shoal.backend.upstream_pool import UpstreamPool
from shoal.backend.upstreams import UpstreamConfig, UpstreamNames
from shoal.backend.webhdfs import WebHdfsBackend
from shoal.config.load import ConfigError
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Matched:
    """The backend of a repository."""

    backend: Backend

    key: str
    """What identifies the place where the repository's blobs go, for queues: the entry's name or
    where it stores. It has the repository in it if each repository has its own copies there."""

    upstream: bool = False
    """Whether it is another registry that is pulled through; it is not written to."""

    places: tuple[Backend, ...] = ()
    """The storages that a `put` writes to, if there are several."""

    async def stored(self, name: Name, size: int, *, deadline: Deadline) -> bool:
        """Whether a `put` would change nothing: each place has the name with this many bytes.

        It differs from `stat`, which says what a reader would find in any of them.
        """
        for place in self.places or (self.backend,):
            if await place.stat(name, deadline=deadline) != size:
                return False
        return True


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    holds: frozenset[Held]
    matched: Matched
    by_repository: bool


class Backends:
    """All backends and upstreams of one process."""

    def __init__(self, rules: Sequence[_Rule], upstreams: UpstreamPool) -> None:
        """Use `Backends.open`."""
        self._rules = tuple(rules)
        self._upstreams = upstreams

    @classmethod
    def open(
        cls,
        backends: Sequence[BackendConfig],
        upstreams: Mapping[str, UpstreamConfig],
        http: HttpClient,
    ) -> Self:
        """Make them ready; nothing is asked yet. Raises `ConfigError` for what cannot work."""
        rules = []
        for config in backends:
            backend, places = _open(config, http)
            rules.append(
                _Rule(
                    re.compile(config.match or ""),
                    frozenset(config.holds),
                    Matched(backend, config.name or _key(config, backend), places=places),
                    _by_repository(config),
                )
            )
        return cls(rules, UpstreamPool(UpstreamNames(upstreams)))

    @property
    def configured(self) -> bool:
        """Whether there is any backend; upstreams do not count."""
        return bool(self._rules)

    @property
    def empty(self) -> bool:
        """Whether there is neither a backend nor an upstream."""
        return not self._rules and self._upstreams.empty

    def for_blobs(self, repository: str) -> Matched | None:
        """Where the repository's blobs and manifests are kept; None: nowhere."""
        return self._first(repository, "blobs")

    def key_for_blobs(self, repository: str) -> str | None:
        """The key of what `for_blobs` returns; opens nothing, and may be called in any thread."""
        upstream = self._upstreams.description(repository)
        if upstream is not None:
            return upstream
        matched = self._by_rule(repository, "blobs")
        return None if matched is None else matched.key

    def for_tags(self, repository: str) -> Matched | None:
        """Where the repository's tags and links are kept; None: nowhere."""
        return self._first(repository, "tags")

    def of_tags(self) -> list[Matched]:
        """Every backend that keeps tags, for lists of repositories; no upstreams."""
        return [rule.matched for rule in self._rules if "tags" in rule.holds]

    async def close(self) -> None:
        """Let all connections go."""
        for rule in self._rules:
            await rule.matched.backend.close()
        await self._upstreams.close()

    def _first(self, repository: str, held: Held) -> Matched | None:
        upstream = self._upstreams.backend(repository)
        if upstream is not None:
            return Matched(upstream, upstream.description, upstream=True)
        return self._by_rule(repository, held)

    def _by_rule(self, repository: str, held: Held) -> Matched | None:
        for rule in self._rules:
            if held in rule.holds and rule.pattern.fullmatch(repository):
                if not rule.by_repository:
                    return rule.matched
                matched = rule.matched
                return Matched(
                    matched.backend, f"{matched.key} {repository}", places=matched.places
                )
        return None


def _open(config: BackendConfig, http: HttpClient) -> tuple[Backend, tuple[Backend, ...]]:
    """The backend, and its parts if it writes to several."""
    if not isinstance(config, ShadowBackendConfig):
        return _limited(_opened(config, http), config), ()
    sides = tuple(_limited(_opened(side, http), side) for side in (config.active, config.mirror))
    return _limited(ShadowBackend(*sides), config), sides


def _limited(backend: Backend, config: BackendConfig) -> Backend:
    limits = config.bandwidth
    if not limits.read and not limits.write:
        return backend
    return LimitedBackend(backend, read=Meter(limits.read), write=Meter(limits.write))


def _opened(config: PlaceConfig, http: HttpClient) -> Backend:
    match config:
        case S3BackendConfig():
            return open_s3(config)
        case GcsBackendConfig():
            return open_gcs(config)
        case AzureBackendConfig():
            return open_azure(config)
        case MemoryBackendConfig():
            return open_memory(config)
        case LocalBackendConfig():
            return LocalBackend(config.path, config.layout, timeout=config.timeout)
        case HttpBackendConfig():
            return PlainHttpBackend(config, http)
        case WebHdfsBackendConfig():
            return WebHdfsBackend(config, http)
        case RegistryBackendConfig():
            return RegistryBackend.of(config)
        case SqlBackendConfig():
            return _open_sql(config)


def _open_sql(config: SqlBackendConfig) -> Backend:
    try:
        # Loaded only where it is used: SQLAlchemy is an extra.
        from shoal.backend.sql import SqlBackend  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            ["a backend of kind sql needs SQLAlchemy: pip install 'shoal[sql]'"]
        ) from error
    try:
        return SqlBackend.of(config)
    except ValueError as error:
        raise ConfigError([f"url of a backend of kind sql: {error}"]) from error


def _key(config: BackendConfig, backend: Backend) -> str:
    layouts = [
        layout_of(side)
        for side in (
            (config.active, config.mirror) if isinstance(config, ShadowBackendConfig) else (config,)
        )
    ]
    paths = [layout.blob_path for layout in layouts if layout is not None and not layout.usual]
    return " ".join([backend.description, *paths])


def _by_repository(config: BackendConfig) -> bool:
    """Whether a blob of two repositories is stored twice."""
    if isinstance(config, ShadowBackendConfig):
        return _by_repository(config.active) or _by_repository(config.mirror)
    layout = layout_of(config)
    if layout is not None:
        return layout.by_repository
    return isinstance(config, RegistryBackendConfig)
