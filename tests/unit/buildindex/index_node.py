# SPDX-License-Identifier: Apache-2.0
"""A build-index in this process, over origins that have what they are told to have."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from shoal.backend.config import BackendConfig
from shoal.backend.matching import Backends
from shoal.backend.upstreams import UpstreamConfig, UpstreamNames
from shoal.buildindex.adoption import Origins
from shoal.buildindex.api import Api
from shoal.buildindex.collector import Collector
from shoal.buildindex.config import (
    GcConfig,
    ReadThroughConfig,
    ResolverConfig,
    WritebackConfig,
)
from shoal.buildindex.database import Database
from shoal.buildindex.elsewhere import Elsewhere
from shoal.buildindex.listing import Listings
from shoal.buildindex.members import Members
from shoal.buildindex.neighbours import Neighbours
from shoal.buildindex.publishing import Publisher
from shoal.buildindex.resolver import Resolver
from shoal.buildindex.service import BuildIndex
from shoal.buildindex.storage import Storage
from shoal.buildindex.store import Store
from shoal.buildindex.upstreams import Upstreams
from shoal.buildindex.writeback import Writeback
from shoal.model.digest import Digest
from shoal.model.manifest import FoundManifest
from shoal.model.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from shoal.origin.client import Presence
from shoal.queue.retry import RetryPolicy
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound
from shoal.web.server import application
from shoal.web.serving import listening

HOSTS = ("o1", "o2")
ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(initial=0.01, attempts=2)


class OriginsWithEverything:
    """Has each blob that it is asked for, and the bytes of those that a test stored."""

    members = HOSTS

    def __init__(self) -> None:
        self.bodies: dict[Digest, bytes] = {}
        self.reads: list[tuple[str, Digest]] = []

    def store(self, body: bytes) -> Digest:
        digest = Digest.of(body)
        self.bodies[digest] = body
        return digest

    async def read(
        self, digest: Digest, *, deadline: Deadline, limit: int, namespace: str = ""
    ) -> bytes:
        assert not deadline.expired
        self.reads.append((namespace, digest))
        if digest not in self.bodies:
            raise NotFound("GET", str(digest), "on no origin")
        assert len(self.bodies[digest]) <= limit
        return self.bodies[digest]

    async def stat(
        self, digest: Digest, *, deadline: Deadline, keep: bool = False, namespace: str = ""
    ) -> int | None:
        raise AssertionError(f"{digest} of {namespace} is on all origins ({deadline}, {keep})")

    async def stat_many(
        self, digests: Iterable[Digest], *, deadline: Deadline, keep: bool = False
    ) -> Presence:
        assert not deadline.expired
        del keep
        wanted = list(digests)
        hosts = frozenset(HOSTS)
        return Presence(dict.fromkeys(wanted, 1), dict.fromkeys(wanted, hosts), {})

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int:
        raise AssertionError(f"{digest} is on {holders} ({deadline})")


def soon() -> Deadline:
    return Deadline.after(10.0)


def descriptor(digest: Digest, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": 1}


def image(config: Digest, *layers: Digest, **extra: Any) -> bytes:
    """An image manifest; `extra` are further fields of it."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, OCI_CONFIG),
        "layers": [descriptor(layer, OCI_LAYER) for layer in layers],
    }
    return json.dumps(document | extra).encode()


def index_of(*children: Digest, **extra: Any) -> bytes:
    """An index of image manifests; `extra` are further fields of it."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(child, OCI_MANIFEST) for child in children],
    }
    return json.dumps(document | extra).encode()


def elsewhere_of(  # noqa: PLR0917 -- the parts of a build-index
    store: Store,
    neighbours: Neighbours,
    publisher: Publisher,
    origins: Origins,
    backends: Backends,
    upstreams: Mapping[str, UpstreamConfig] | None = None,
    *,
    config: ReadThroughConfig | None = None,
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> Elsewhere:
    """What a build-index looks up in backends and at upstreams."""
    config = config or ReadThroughConfig()
    return Elsewhere(
        store,
        Storage(store, publisher, neighbours, backends=backends, origins=origins, config=config),
        Upstreams(
            UpstreamNames(upstreams or {}),
            store,
            publisher,
            backends,
            origins,
            timeout=config.timeout,
            failure=config.failure,
            renew_after_ms=12 * 3600 * 1000,
            wall_ms=wall_ms,
        ),
    )


class Node:
    """A build-index and its parts."""

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[str] = (),
        *,
        ahead: float = 0.0,
        timeout: float = 2.0,
        interval: float = 0.1,
        gc: GcConfig | None = None,
        existence: RetryPolicy = ONCE,
        backends: Sequence[BackendConfig] = (),
        upstreams: Mapping[str, UpstreamConfig] | None = None,
        read_through: ReadThroughConfig | None = None,
    ) -> None:
        """`hosts` are its neighbours; its clock is `ahead` seconds off."""
        self.folder = folder
        self.ahead = ahead
        self.address = ""
        self.http = HttpClient(user_agent="test")
        self.origins = OriginsWithEverything()
        self.store = Store(Database(folder, wall_ms=self.wall_ms))
        self.neighbours = Neighbours(
            self.http, self.store, hosts, timeout=timeout, interval=interval, wall_ms=self.wall_ms
        )
        self.config = gc or GcConfig(interval=0)
        self.collector = Collector(
            self.store,
            self.neighbours,
            self.config,
            tombstone_ttl=30 * 86400.0,
            unwritten=self._unwritten,
            wall_ms=self.wall_ms,
        )
        self.backend_configs = tuple(backends)
        self.backends = Backends.open(backends, upstreams or {}, self.http)
        self.writeback: Writeback | None = None
        self.publisher = Publisher(self.store, self.neighbours, wrote=self._wrote)
        through = read_through or ReadThroughConfig()
        self.elsewhere = elsewhere_of(
            self.store,
            self.neighbours,
            self.publisher,
            self.origins,
            self.backends,
            upstreams,
            config=through,
            wall_ms=self.wall_ms,
        )
        self.index = BuildIndex(
            self.store,
            self.neighbours,
            self.publisher,
            Resolver(
                self.origins,
                Members(self.store, self.neighbours, self.elsewhere),
                2,
                ResolverConfig(manifest=ONCE, existence=existence),
            ),
            self.collector,
            elsewhere=self.elsewhere,
            listings=Listings(self.store, self.backends, timeout=through.timeout),
            gc_grace=self.config.grace,
            origins_missing=_nothing_missing,
            wall_ms=self.wall_ms,
        )

    def wall_ms(self) -> int:
        return int((time.time() + self.ahead) * 1000)

    def _wrote(self) -> None:
        if self.writeback is not None:
            self.writeback.wake()

    async def _unwritten(self) -> int | None:
        return None if self.writeback is None else await self.writeback.oldest_deletion()

    async def write_back(self) -> None:
        """Begin to write to the backends."""
        self.writeback = await Writeback.start(
            self.folder,
            self.store,
            self.backends,
            self.backend_configs,
            WritebackConfig(retry=RetryPolicy(initial=0.05, cap=0.1), stagger=0.2),
        )

    async def stop(self) -> None:
        if self.writeback is not None:
            await self.writeback.stop(1.0)
        await self.index.stop()
        await self.backends.close()
        await self.http.close()

    # What a proxy does.

    async def link(self, *digests: Digest, repository: str = "app") -> None:
        for digest in digests:
            await self.index.link(repository, digest)

    async def push(self, body: bytes, *tags: str, repository: str = "app", **given: Any) -> Digest:
        digest = self.origins.store(body)
        await self.index.put_manifest(
            repository, digest, body, None, tags=tags, deadline=soon(), **given
        )
        return digest

    async def push_image(self, name: str, *tags: str, **extra: Any) -> Digest:
        """Push an image with a config and a layer of its own."""
        config, layer = (Digest.of(f"{part} of {name}".encode()) for part in ("config", "layer"))
        await self.link(config, layer)
        return await self.push(image(config, layer, **extra), *tags)

    async def adopt(self, body: bytes, tag: str = "latest", repository: str = "app") -> str:
        """Tag by the trusted API; the digest's text."""
        digest = self.origins.store(body)
        await self.index.put_tag(repository, tag, digest, body, None, deadline=soon())
        return str(digest)

    async def find(self, reference: Digest | str, repository: str = "app") -> FoundManifest | None:
        looked = await self.index.lookup(
            [(repository, str(reference))], [], rely=False, deadline=soon()
        )
        return looked.manifests[0]

    async def has(self, digest: Digest, repository: str = "app", *, rely: bool = False) -> bool:
        looked = await self.index.lookup(
            [], [(repository, str(digest))], rely=rely, deadline=soon()
        )
        return looked.blobs[0]

    async def tags(self, repository: str = "app") -> list[str]:
        return (await self.index.tags(repository, "", None)).names


@asynccontextmanager
async def serving(
    folder: Path, *hosts: str, address: str = "127.0.0.1:0", **given: Any
) -> AsyncIterator[Node]:
    """Run a node and its HTTP API; `hosts` are its neighbours."""
    async with AsyncExitStack() as stack:
        node = Node(folder, hosts, **given)
        stack.push_async_callback(node.stop)
        app = application("build-index", readiness=node.index.readiness)
        Api(node.index).add_routes(app)
        await node.index.start(5.0)
        (node.address,) = await stack.enter_async_context(listening([(app, address)], grace=1.0))
        yield node


async def _nothing_missing() -> list[str]:
    return []
