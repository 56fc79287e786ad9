# SPDX-License-Identifier: Apache-2.0
"""What the proxy needs of the other services; their clients are what implements it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from shoal.model.digest import Digest
from shoal.model.manifest import FoundManifest, IndexChildren, Referrer
from shoal.origin.messages import PrefetchAnswer
from shoal.web.bodies import Blob
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed


class Presence(Protocol):
    """Where blobs are."""

    @property
    def copies(self) -> Mapping[Digest, frozenset[str]]: ...

    @property
    def unasked(self) -> Mapping[str, CallFailed]: ...


class Origins(Protocol):
    """The origins as one (`shoal.origin.client.OriginCluster`): content, whoever it belongs to.

    With `keep`, a question makes what it finds young again for the garbage collection: who asks is
    about to rely on it. `namespace` is the repository whose backend gets what is pushed, and is
    asked for what no origin has.
    """

    async def check_push(self, namespace: str, *, deadline: Deadline) -> None: ...

    async def upload(
        self,
        digest: Digest,
        source: Path | int,
        size: int,
        *,
        deadline: Deadline,
        namespace: str = "",
    ) -> object: ...

    async def stat(
        self, digest: Digest, *, deadline: Deadline, keep: bool = False, namespace: str = ""
    ) -> int | None: ...

    async def stat_many(
        self,
        digests: Iterable[Digest],
        *,
        deadline: Deadline,
        keep: bool = False,
        namespace: str = "",
    ) -> Presence: ...

    async def read(
        self, digest: Digest, *, deadline: Deadline, limit: int, namespace: str = ""
    ) -> bytes: ...

    async def open(self, digest: Digest, *, deadline: Deadline, namespace: str = "") -> Blob: ...

    async def prefetch(
        self, digest: Digest, namespace: str, *, deadline: Deadline
    ) -> PrefetchAnswer | None: ...


class Index(Protocol):
    """The build-index (`shoal.buildindex.client.BuildIndexClient`): what belongs to whom."""

    async def find_manifest(
        self,
        repository: str,
        reference: Digest | str,
        *,
        deadline: Deadline,
        rely: bool = False,
    ) -> FoundManifest | None: ...

    async def has_blob(
        self, repository: str, digest: Digest, *, deadline: Deadline, rely: bool = False
    ) -> bool: ...

    async def link_blob(self, repository: str, digest: Digest, *, deadline: Deadline) -> None: ...

    async def mount_blob(
        self, repository: str, digest: Digest, source: str | None, *, deadline: Deadline
    ) -> bool: ...

    async def put_manifest(
        self,
        repository: str,
        digest: Digest,
        body: bytes | None,
        media_type: str | None,
        *,
        tags: Sequence[str],
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> None: ...

    async def delete_tag(self, repository: str, tag: str, *, deadline: Deadline) -> bool: ...

    async def delete_manifest(
        self, repository: str, digest: Digest, *, deadline: Deadline
    ) -> bool: ...

    async def delete_blob(self, repository: str, digest: Digest, *, deadline: Deadline) -> bool: ...

    async def referrers(
        self,
        repository: str,
        subject: Digest,
        *,
        artifact_type: str | None,
        n: int,
        last: str,
        deadline: Deadline,
    ) -> list[Referrer]: ...

    async def tags(
        self, repository: str, n: int, last: str, *, deadline: Deadline
    ) -> list[str]: ...

    async def repositories(self, n: int, last: str, *, deadline: Deadline) -> list[str]: ...
