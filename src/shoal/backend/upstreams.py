# SPDX-License-Identifier: Apache-2.0
"""Registries that Shoal pulls through: their settings, and what their repositories are called here.

The repository ``library/alpine`` of ``docker.io`` is ``docker.io/library/alpine`` in Shoal: the
first component is the registry's name, with ``__`` for the colon before a port.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, model_validator

from shoal.config.model import Config
from shoal.config.units import Duration
from shoal.model.names import repository_name

DEFAULT = "_default"
"""The entry of `upstreams` for every registry that has none of its own."""

DOCKER_HUB = "docker.io"

MAX_PORT = 65535

_URLS = {DOCKER_HUB: "https://registry-1.docker.io"}
_ALIASES = {"index.docker.io": DOCKER_HUB, "registry-1.docker.io": DOCKER_HUB}
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|-+)[a-z0-9]+)*(?::[0-9]{1,5})?", re.ASCII)
_COMPONENT_PORT = re.compile(r"(.+)__([0-9]{1,5})", re.ASCII)


def _base_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            f"expected a registry's URL, such as https://registry.example.com: {value}"
        )
    if url.username is not None or url.password is not None:
        raise ValueError("a registry's URL has no user and password: use username and password")
    if url.query or url.fragment:
        raise ValueError("a registry's URL has no query and no fragment")
    return value.rstrip("/")


RegistryUrl = Annotated[str, AfterValidator(_base_url)]
"""Scheme, host, port, and a path prefix if the registry is behind one; without ``/v2``."""


class RegistryAccess(Config):
    """How a registry is reached: the settings that upstreams and backends of a registry share."""

    url: RegistryUrl | None = None
    """Where it is; an upstream's default is ``https://`` and its name."""

    username: str | None = None
    """User for basic or token authentication; needs `password` or `password_file`."""

    password: SecretStr | None = None
    """Its password or access token; `password_file` keeps it out of the config."""

    password_file: Path | None = None
    """File that holds the password; read again for every new token, so it may be rotated."""

    docker_config: Path | None = None
    """A docker config.json: its `auths`, `credHelpers` and `credsStore` are used for this host."""

    credential_helper: str | None = None
    """Helper's name, as in ``docker-credential-<name>``: ``ecr-login``, ``gcr``, ``acr-env``."""

    realms: tuple[str, ...] = ()
    """Further hosts (``host`` or ``host:port``) whose token service may have the credentials.

    Those of the registry's own address may, and those known for Docker Hub and GitLab.
    """

    allow_private: bool = False
    """Follow redirects and token realms to private, loopback and link-local addresses."""

    ca: Path | None = None
    """PEM file of the authorities that are trusted instead of the system's."""

    timeout: Duration = 30.0
    """Bound of one question, and of a pause within a body."""

    @model_validator(mode="after")
    def _one_source_of_credentials(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("give password or password_file, not both")
        has_password = self.password is not None or self.password_file is not None
        if has_password != (self.username is not None):
            raise ValueError("username needs password or password_file, and these need username")
        sources = [self.username, self.docker_config, self.credential_helper]
        if sum(source is not None for source in sources) > 1:
            raise ValueError("give one of username, docker_config and credential_helper")
        return self


class UpstreamConfig(RegistryAccess):
    """A registry whose images Shoal pulls through."""

    fresh: Duration = 60.0
    """For how long a tag's digest is served without asking the registry again."""

    negative: Duration = 10.0
    """For how long an answer that a tag or a blob is not there is repeated without asking."""

    stale: Duration = 7 * 86400.0
    """For how long a tag that was asked for before is served while the registry is down."""


def _upstreams(value: dict[str, UpstreamConfig]) -> dict[str, UpstreamConfig]:
    for name, config in value.items():
        if name == DEFAULT:
            if config.url is not None or config.username is not None:
                raise ValueError(
                    f"{DEFAULT} stands for registries that clients name: url and username belong "
                    "to an entry with the registry's own name"
                )
        elif _NAME.fullmatch(name) is None:
            raise ValueError(
                f"{name!r} is not a registry's name, such as docker.io or localhost:5000 "
                f"(lower case), nor {DEFAULT}"
            )
        elif ":" in name and not _is_host(name):
            raise ValueError(f"{name!r} has no port from 1 to {MAX_PORT}")
        elif config.url is None and not _is_host(name):
            raise ValueError(f"{name!r} is no host name: give its url")
        elif name in _ALIASES:
            raise ValueError(f"{name} is called {_ALIASES[name]} here")
    return value


UpstreamsConfig = Annotated[dict[str, UpstreamConfig], AfterValidator(_upstreams)]
"""The type of the config key `upstreams`: registry name (also ``_default``) -> settings."""


@dataclass(frozen=True, slots=True)
class Remote:
    """What an internal repository is at its upstream."""

    registry: str
    """The upstream's name, such as ``docker.io`` or ``localhost:5000``."""

    repository: str
    """Its repository there, such as ``library/alpine``."""

    url: str
    """The registry's base URL."""

    config: UpstreamConfig

    configured: bool
    """Whether the config names the registry; False: `_default` let a client name it."""


@dataclass(frozen=True, slots=True)
class Renaming:
    """What a backend's repositories are called here and in the registry behind it."""

    prefix: str = ""
    suffix: str = ""
    """Around the name there."""

    stripped: str = ""
    """The prefix of the name here that the registry does not know."""

    registry: str = ""
    """The registry whose rules for short names hold."""

    def there(self, repository: str) -> str:
        """The registry's name of a repository."""
        name = _remote(self.registry, repository.removeprefix(self.stripped))
        return f"{self.prefix}{name}{self.suffix}"

    def here(self, repository: str) -> str | None:
        """Our name of a repository of the registry; None: it has none here."""
        name = repository.removeprefix(self.prefix).removesuffix(self.suffix)
        if not name or repository != f"{self.prefix}{name}{self.suffix}":
            return None
        return f"{self.stripped}{name}"


def renaming_of_upstream(registry: str) -> Renaming:
    """How an upstream's repositories are renamed."""
    return Renaming(stripped=f"{registry.replace(':', '__')}/", registry=registry)


class UpstreamNames:
    """Which repositories are those of upstreams, and what they are called here and there."""

    def __init__(self, upstreams: Mapping[str, UpstreamConfig]) -> None:
        self._upstreams = upstreams

    @property
    def any(self) -> bool:
        """Whether there is an upstream at all."""
        return bool(self._upstreams)

    def remote(self, repository: str) -> Remote | None:
        """What an internal repository is at its upstream; None: it is one of Shoal's own."""
        component, slash, rest = repository.partition("/")
        if not slash:
            return None
        registry = registry_of(component)
        config = self._config(registry)
        if config is None:
            return None
        url = config.url or _URLS.get(registry) or f"https://{registry}"
        return Remote(registry, _remote(registry, rest), url, config, registry in self._upstreams)

    def canonical(self, repository: str) -> str:
        """The one internal name of a repository: that of `internal` if it is an upstream's.

        ``docker.io/alpine`` becomes ``docker.io/library/alpine``; Shoal's own stay as they are.
        """
        remote = self.remote(repository)
        return repository if remote is None else _joined(remote.registry, remote.repository)

    def internal(self, registry: str, repository: str) -> str | None:
        """The internal name of a registry's repository; None: it is no upstream of this cluster.

        `registry` is what containerd sends as ``?ns=``. Raises `InvalidName` when the two together
        are no valid repository name.
        """
        name = _ALIASES.get(registry.lower(), registry.lower())
        if _NAME.fullmatch(name) is None or self._config(name) is None:
            return None
        return _joined(name, _remote(name, repository))

    def _config(self, registry: str) -> UpstreamConfig | None:
        found = self._upstreams.get(registry)
        if found is None and _is_host(registry):
            return self._upstreams.get(DEFAULT)
        return found


def registry_of(component: str) -> str:
    """The registry that a repository's first component names: ``a__5000`` -> ``a:5000``."""
    match = _COMPONENT_PORT.fullmatch(component)
    name = f"{match[1]}:{match[2]}" if match else component
    return _ALIASES.get(name, name)


def _joined(registry: str, repository: str) -> str:
    return repository_name(f"{registry.replace(':', '__')}/{repository}")


def _remote(registry: str, repository: str) -> str:
    """Docker Hub's own images are in ``library``, which their short names leave out."""
    if registry == DOCKER_HUB and "/" not in repository:
        return f"library/{repository}"
    return repository


def _is_host(name: str) -> bool:
    """Whether it is a host, by the rule of docker's references: a dot, a port, or localhost."""
    host, colon, port = name.partition(":")
    if colon:
        return 0 < int(port) <= MAX_PORT
    return "." in host or host == "localhost"


__all__ = [
    "DEFAULT",
    "DOCKER_HUB",
    "RegistryAccess",
    "RegistryUrl",
    "Remote",
    "Renaming",
    "UpstreamConfig",
    "UpstreamNames",
    "UpstreamsConfig",
    "registry_of",
    "renaming_of_upstream",
]
