# SPDX-License-Identifier: Apache-2.0
"""A proxy's service over origins and a build-index in memory, and what is sent to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from shoal.model.digest import Digest
from shoal.model.manifest import FoundManifest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from shoal.proxy.service import ProxyService
from shoal.proxy.uploads import Uploads
from shoal.registry.app import registry_routes
from shoal.registry.ports import Chunk
from shoal.store.uploads import UploadSessions
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from shoal.web.server import application
from tests.unit.registry_fakes import QUORUM, MemoryIndex, MemoryOrigins

NAME = "team/app"
CONTENT = bytes(range(256)) * 20


@dataclass
class FailingIndex(MemoryIndex):
    """A build-index that cannot be asked, or takes no links, when a test says so."""

    down: bool = False
    refusing_links: bool = False

    async def find_manifest(
        self,
        repository: str,
        reference: Digest | str,
        *,
        deadline: Deadline,
        rely: bool = False,
        through: bool = True,
    ) -> FoundManifest | None:
        self._ask()
        return await super().find_manifest(
            repository, reference, deadline=deadline, rely=rely, through=through
        )

    async def has_blob(
        self, repository: str, digest: Digest, *, deadline: Deadline, rely: bool = False
    ) -> bool:
        self._ask()
        return await super().has_blob(repository, digest, deadline=deadline, rely=rely)

    async def link_blob(self, repository: str, digest: Digest, *, deadline: Deadline) -> None:
        if self.refusing_links:
            raise Unreachable("PUT", "http://index-1:5003/", "refused")
        self._ask()
        await super().link_blob(repository, digest, deadline=deadline)

    def _ask(self) -> None:
        if self.down:
            raise Unreachable("POST", "http://index-1:5003/", "refused")


class Proxy:
    """A proxy service and all that it stands on."""

    def __init__(self, folder: Path, *, idle_timeout: float = 10.0) -> None:
        self.folder = folder
        self.origins = MemoryOrigins()
        self.index = FailingIndex(self.origins)
        self.idle_timeout = idle_timeout
        self.service = self.start()

    def start(self) -> ProxyService:
        """The service of a process that starts on this folder."""
        return ProxyService(
            origins=self.origins,
            index=self.index,
            uploads=Uploads(
                UploadSessions(self.folder), idle_timeout=self.idle_timeout, name="proxy:1"
            ),
            write_quorum=QUORUM,
            manifest_cache=1024 * 1024,
        )

    def hold(self, content: bytes, name: str = NAME, copies: int = 3) -> Digest:
        """Have a blob that belongs to a repository."""
        digest = self.origins.hold(content, copies)
        self.index.links.add((name, digest))
        return digest

    async def push(self, content: bytes, name: str = NAME) -> Digest:
        """Push a blob in one request."""
        upload = await self.service.start_upload(name)
        digest = Digest.of(content)
        await self.service.finish(name, upload, digest, chunk(content), soon())
        return digest

    def application(self) -> web.Application:
        """The registry over HTTP."""

        async def ready() -> list[str]:
            return []

        app = application("test", readiness=ready)
        registry_routes(app, self.service, self.service)
        return app

    def files(self) -> list[str]:
        return [entry.name for entry in self.folder.iterdir()]


def soon() -> Deadline:
    return Deadline.after(20)


async def _body(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def chunk(*parts: bytes, offset: int | None = None, size: int | None = None) -> Chunk:
    return Chunk(_body(*parts), offset=offset, size=size)


def image(*layers: bytes, config: bytes = b"{}", subject: bytes | None = None) -> bytes:
    def entry(kind: str, content: bytes) -> dict[str, object]:
        return {"mediaType": kind, "digest": str(Digest.of(content)), "size": len(content)}

    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(OCI_CONFIG, config),
        "layers": [entry(OCI_LAYER, layer) for layer in layers],
    }
    if subject is not None:
        document["subject"] = entry(OCI_MANIFEST, subject)
    return json.dumps(document).encode()
