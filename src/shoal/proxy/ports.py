# SPDX-License-Identifier: Apache-2.0
"""What the proxy needs of the other services; their clients are what implements it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from shoal.model.digest import Digest
from shoal.model.manifest import IndexChildren
from shoal.web.bodies import Blob
from shoal.web.deadline import Deadline


class Presence(Protocol):
    """Where blobs are."""

    @property
    def copies(self) -> Mapping[Digest, frozenset[str]]: ...


class Origins(Protocol):
    """The origins as one (`shoal.origin.client.OriginCluster`)."""

    async def upload(
        self, digest: Digest, source: Path | int, size: int, *, deadline: Deadline
    ) -> object: ...

    async def stat(self, digest: Digest, *, deadline: Deadline) -> int | None: ...

    async def stat_many(self, digests: Iterable[Digest], *, deadline: Deadline) -> Presence: ...

    async def read(self, digest: Digest, *, deadline: Deadline, limit: int) -> bytes: ...

    async def open(self, digest: Digest, *, deadline: Deadline) -> Blob: ...


class TagIndex(Protocol):
    """The build-index (`shoal.buildindex.client.BuildIndexClient`)."""

    async def put_tag(
        self,
        repository: str,
        tag: str,
        digest: Digest,
        manifest: bytes | None,
        media_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> object: ...

    async def check(
        self,
        repository: str,
        digest: Digest,
        manifest: bytes | None,
        media_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> object: ...

    async def get_tag(self, repository: str, tag: str, *, deadline: Deadline) -> Digest | None: ...

    async def tags(
        self, repository: str, n: int, last: str, *, deadline: Deadline
    ) -> list[str]: ...

    async def repositories(self, n: int, last: str, *, deadline: Deadline) -> list[str]: ...
