# SPDX-License-Identifier: Apache-2.0
"""Where the scenarios play: three origins with two copies of each blob, and a backend behind them.

They are those of Kraken's own tests (its folder `test/python`), which Shoal must hold, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from tests.acceptance.clients import Reference
from tests.acceptance.images import Content
from tests.acceptance.object_store import ObjectStore
from tests.acceptance.raw import Answer, ask, blob
from tests.cluster import AgentUrls, RunningCluster

NAMESPACE: Final = "test/some/blobs"
"""With slashes, as they are easily escaped once too often."""

ORIGINS: Final = ("origin-0", "origin-1", "origin-2")
AGENTS: Final = 4
MEMORY: Final = 1024 * 1024
"""Bytes of small blobs that an origin keeps in memory."""
MEMORY_TTL: Final = "2s"
"""How long it keeps them there."""

_CHUNK: Final = 2_000_000
_WITHIN: Final = 30.0
_GLANCE: Final = 0.05


class Stage:
    """A cluster and its backend. `mend` puts right what a scenario broke."""

    def __init__(self, cluster: RunningCluster, storage: ObjectStore) -> None:
        self.cluster = cluster
        self.storage = storage
        self._down: set[str] = set()

    @classmethod
    @contextlib.contextmanager
    def build(cls, folder: Path) -> Iterator[Self]:
        """Start all of it, and stop it on the way out."""
        folder.mkdir()
        with ObjectStore.run(folder / "storage.log") as storage:
            config = _config(storage)
            with RunningCluster.start(folder / "cluster", agents=AGENTS, config=config) as cluster:
                yield cls(cluster, storage)

    def mend(self) -> None:
        """Have everything run that a scenario stopped."""
        self.storage.mend()
        self.restart(*sorted(self._down))

    # -- services

    def kill(self, *services: str) -> None:
        """SIGKILL, until `restart` or the end of the test."""
        for service in services:
            self._down.add(service)
            self.cluster.kill(service)

    def restart(self, *services: str) -> None:
        """Start services that were killed; returns when all are ready."""
        with ThreadPoolExecutor(max_workers=4) as threads:
            list(threads.map(self.cluster.restart, services))
        self._down.difference_update(services)

    def wipe(self, *services: str) -> None:
        """Have services lose their disks, all at the same time, and start anew."""
        self.kill(*services)
        for service in services:
            shutil.rmtree(self.cluster.data_dir(service))
        self.restart(*services)

    # -- blobs

    def upload(self, content: Content) -> None:
        """Upload a blob in chunks as Kraken's clients do, and have the namespace list it."""
        ask_for = f"/namespace/{quote(NAMESPACE, safe='')}/blobs/{content.digest}"
        origin = next(
            url
            for name, url in zip(ORIGINS, self.cluster.origins, strict=True)
            if name not in self._down
        )
        started = ask(f"{origin}{ask_for}/uploads", "POST")
        assert started.status == 202, started.body
        upload = f"{origin}{started.headers['Location']}"
        for start in range(0, len(content.data), _CHUNK):
            chunk = content.data[start : start + _CHUNK]
            span = {"Content-Range": f"{start}-{start + len(chunk) - 1}"}
            sent = ask(upload, "PATCH", headers=span, body=chunk)
            assert sent.status == 202, sent.body
        done = ask(upload, "PUT", body=b"")
        assert done.status == 201, done.body
        self.link(content)

    def link(self, content: Content) -> None:
        """Make a blob part of the namespace, so that the registry serves it from there."""
        index = self.cluster.build_indexes[0]
        url = f"{index}/repositories/{quote(NAMESPACE, safe='')}/blobs/{content.digest}"
        linked = ask(url, "PUT", body=b"")
        assert linked.status == 201, linked.body

    def download(self, agent: AgentUrls, content: Content) -> Answer:
        """Get a blob by the registry API."""
        return blob(Reference(agent.registry, NAMESPACE), content.digest)

    def download_generic(self, agent: AgentUrls, content: Content, method: str = "GET") -> Answer:
        """Get a blob by the path that Kraken's agent has for it, on the agent's admin endpoint."""
        namespace = quote(NAMESPACE, safe="")
        return ask(f"{agent.admin}/namespace/{namespace}/blobs/{content.digest}", method)

    def prefetch(self, origin: str, content: Content) -> Answer:
        """Ask an origin, by its base URL, to have a blob fetched from the backend."""
        namespace = quote(NAMESPACE, safe="")
        return ask(f"{origin}/namespace/{namespace}/blobs/{content.digest}/prefetch", "POST")

    def check_download(self, agent: AgentUrls, content: Content) -> None:
        """Have an agent serve a blob, with the right bytes."""
        answer = self.download(agent, content)
        assert answer.status == 200, answer.body[:1000]
        assert answer.body == content.data

    def owners(self, content: Content) -> list[str]:
        """The names of the origins that should have a blob, best first."""
        answer = ask(f"{self.cluster.origins[0]}/blobs/{content.digest}/locations")
        assert answer.status == 200, answer.body
        hosts = answer.headers["Origin-Locations"].split(",")
        return [ORIGINS[self.cluster.origins.index(f"http://{host}")] for host in hosts]

    def holders(self, digest: str) -> set[str]:
        """The names of the origins that have a blob on their own disks."""
        running = set(ORIGINS) - self._down
        return {name for name in running if self._holds(name, digest)}

    def _holds(self, origin: str, digest: str) -> bool:
        answer = ask(f"{self.cluster.base_url(origin)}/internal/blobs/{digest}", "HEAD")
        assert answer.status in {200, 404}, answer.status
        return answer.status == 200

    def wait_stored(self, *digests: str) -> None:
        """Return when the backend has these blobs."""
        until(lambda: all(map(self.storage.has_blob, digests)), "the backend has the blobs")

    # -- metrics

    def metric(self, name: str, services: tuple[str, ...] = ORIGINS) -> float:
        """The sum of a metric over services."""
        total = 0.0
        for service in services:
            text = ask(f"{self.cluster.base_url(service)}/metrics").body.decode()
            values = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")]
            assert values, f"{service} has no metric {name}"
            total += float(values[0])
        return total


def random_blob(size: int = 5_000_000) -> Content:
    """A blob that nobody has seen before."""
    return Content("application/octet-stream", os.urandom(size))


def until(condition: Callable[[], bool], what: str) -> None:
    """Return when it holds: what services do behind the answers is told by nobody."""
    patience = time.monotonic() + _WITHIN
    while not condition():
        assert time.monotonic() < patience, f"not after {_WITHIN} s: {what}"
        time.sleep(_GLANCE)


def _config(storage: ObjectStore) -> dict[str, Any]:
    origins = {"origins": {"replicas": 2, "write_quorum": 2}}
    retry = {"initial": "50ms", "cap": "500ms"}
    backends = {
        "backends": [storage.backend("test/.*")],
        "writeback": {"retry": retry, "stagger": "2s"},
    }
    return {
        "proxy": origins,
        "tracker": origins,
        "agent": origins,
        "origin": {
            **origins,
            **backends,
            "memory_cache": f"{MEMORY}B",
            "memory_ttl": MEMORY_TTL,
        },
        "build-index": {**origins, **backends},
    }
