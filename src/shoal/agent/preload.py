# SPDX-License-Identifier: Apache-2.0
"""Preload: have a container runtime of this host pull an image before a container needs it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from time import monotonic
from typing import Protocol

import msgspec
import structlog
from prometheus_client import Counter

from shoal.agent.config import AgentConfig, PreloadConfig
from shoal.agent.runtimes import Containerd, Docker, Runtime, named
from shoal.config.units import split_address
from shoal.model.digest import Digest
from shoal.model.errors import ApiError, BadRequest, Unavailable, Unsupported
from shoal.model.manifest import FoundManifest
from shoal.web.deadline import Deadline

RUNTIMES = ("docker", "containerd")
DEFAULT_NAMESPACE = "default"
"""containerd's own; Kubernetes looks into ``k8s.io``."""

_NAMESPACE = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", re.ASCII)
_MAX_NAMESPACE = 76

_PRELOADS = Counter(
    "shoal_agent_preloads",
    "Images that runtimes of this host were told to pull.",
    ["runtime", "outcome"],
)

log = structlog.get_logger(__name__)


class PreloadTimeout(Unavailable):
    """504: the runtime took longer than the caller, or the config, lets it."""

    status = 504


class Preloaded(msgspec.Struct, frozen=True):
    """An image that a runtime of this host has now."""

    runtime: str
    image: str
    """What it is called there."""

    digest: str
    """What the tag named when the runtime was told."""

    seconds: float


class Manifests(Protocol):
    """What repositories have (`shoal.agent.pulls.Pulls`)."""

    async def find_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest: ...


class Preload:
    """Tells the runtimes that the config names, a few images at a time."""

    def __init__(
        self,
        registry: str,
        runtimes: Mapping[str, Runtime],
        manifests: Manifests,
        config: PreloadConfig,
    ) -> None:
        """`registry`: what the runtimes call this agent, ``host:port``."""
        self._registry = registry
        self._runtimes = runtimes
        self._manifests = manifests
        self._timeout = config.timeout
        self._slots = asyncio.Semaphore(config.concurrency)

    @property
    def timeout(self) -> float:
        """Seconds for one image."""
        return self._timeout

    async def image(
        self,
        repository: str,
        reference: Digest | str,
        deadline: Deadline,
        *,
        runtime: str,
        namespace: str = DEFAULT_NAMESPACE,
        told: str | None = None,
    ) -> Preloaded:
        """Return when the runtime has pulled the image from this agent.

        `told`: the repository as the runtime is to call it, by default the same. Raises
        `Unsupported` when the config does not name the runtime, `ManifestUnknown`, and what
        `Runtime.pull` raises.
        """
        puller = self._runtime(runtime)
        if len(namespace) > _MAX_NAMESPACE or _NAMESPACE.fullmatch(namespace) is None:
            raise BadRequest(f"{namespace[:80]!r} is not a namespace of containerd")
        began = monotonic()
        deadline = deadline.at_most(self._timeout)
        found = await self._manifests.find_manifest(repository, reference, deadline)
        name = f"{self._registry}/{told or repository}"
        image = named(name, reference)
        outcome = "failed"
        try:
            async with asyncio.timeout(deadline.remaining()), self._slots:
                log.info("preload begins", runtime=runtime, image=image, digest=str(found.digest))
                await puller.pull(name, reference, namespace)
                outcome = "pulled"
        except TimeoutError as error:
            outcome = "late"
            raise PreloadTimeout(
                f"{runtime} had not pulled {image} after {monotonic() - began:.0f} s, and was "
                "stopped; what it has got stays with it: send the request again, or raise "
                "preload.timeout"
            ) from error
        except ApiError as error:
            log.warning("preload failed", runtime=runtime, image=image, error=error.message)
            raise
        finally:
            _PRELOADS.labels(runtime, outcome).inc()
        seconds = round(monotonic() - began, 3)
        log.info("preload done", runtime=runtime, image=image, seconds=seconds)
        return Preloaded(runtime, image, str(found.digest), seconds)

    def _runtime(self, name: str) -> Runtime:
        if name not in RUNTIMES:
            raise BadRequest(f"runtime is {name[:40]!r}; it is one of {', '.join(RUNTIMES)}")
        runtime = self._runtimes.get(name)
        if runtime is None:
            raise Unsupported(
                f"this agent may not tell {name} to pull: set preload.{name}_socket in its config "
                "to the path of the socket that it listens on"
            )
        return runtime


def preload_of(config: AgentConfig, manifests: Manifests) -> Preload:
    """The preload that an agent's config allows."""
    runtimes: dict[str, Runtime] = {}
    preload = config.preload
    if preload.docker_socket is not None:
        runtimes[Docker.name] = Docker(preload.docker_socket)
    if preload.containerd_socket is not None:
        ca = config.tls.ca if config.registry_tls else None
        runtimes[Containerd.name] = Containerd(preload.containerd_socket, preload.ctr, ca=ca)
    return Preload(registry_of(config.listen), runtimes, manifests, preload)


def registry_of(listen: str) -> str:
    """What a runtime of this host calls the agent that listens there.

    By a loopback address where it can: runtimes take plain HTTP from no other by default.
    """
    host, port = split_address(listen)
    if host in {"0.0.0.0", "localhost"}:  # noqa: S104 compared, not listened on
        host = "127.0.0.1"
    if host in {"::", "[::]"}:
        host = "::1"
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
