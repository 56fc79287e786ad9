# SPDX-License-Identifier: Apache-2.0

"""Origins, a build-index and a whole registry in memory, for tests of what stands before them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUnknown,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameUnknown,
    SizeInvalid,
    Unavailable,
    Unsupported,
    UploadConflict,
    UploadOutOfOrder,
)
from shoal.model.manifest import (
    LARGE_REFERRERS,
    FoundManifest,
    IndexChildren,
    InvalidManifest,
    Manifest,
    Referrer,
    parse_manifest,
)
from shoal.origin.messages import PrefetchAnswer
from shoal.registry.ports import Chunk, ClientStalled, StoredManifest
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Unreachable

QUORUM = 2


class MemoryBlob:
    """A blob of `shoal.web.bodies` that is held in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)
        self.closed = False

    async def segments(self, start: int, stop: int) -> AsyncIterator[bytes]:
        for offset in range(start, stop, 1000):
            yield self._content[offset : min(offset + 1000, stop)]

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


@dataclass
class Copies:
    copies: dict[Digest, frozenset[str]]
    unasked: dict[str, CallFailed] = field(default_factory=dict)


@dataclass
class MemoryOrigins:
    """Three origins that hold the same blobs, unless a test says otherwise."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    copies: dict[Digest, int] = field(default_factory=dict)
    failure: str | None = None
    silent: set[str] = field(default_factory=set)
    gate: asyncio.Event | None = None
    uploading: asyncio.Event = field(default_factory=asyncio.Event)
    deadlines: list[float] = field(default_factory=list)
    opened: list[MemoryBlob] = field(default_factory=list)
    namespaces: list[tuple[Digest, str]] = field(default_factory=list)
    """Of the uploads."""
    checked: list[str] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    backed: dict[tuple[str, Digest], int] = field(default_factory=dict)
    """Sizes of what only a repository's backend has."""
    fetching: list[tuple[Digest, str]] = field(default_factory=list)
    """What was asked for to be fetched from there."""

    def hold(self, content: bytes, copies: int = 3) -> Digest:
        digest = Digest.of(content)
        self.blobs[digest], self.copies[digest] = content, copies
        return digest

    async def check_push(self, namespace: str, *, deadline: Deadline) -> None:
        self.checked.append(namespace)
        if namespace in self.denied:
            raise Denied(f"no backend stores the blobs of {namespace}")
        if self.failure is not None:
            raise Unreachable("GET", "/internal/push-check", self.failure)

    async def upload(
        self,
        digest: Digest,
        source: Path | int,
        size: int,
        *,
        deadline: Deadline,
        namespace: str = "",
    ) -> object:
        assert isinstance(source, Path)
        self.namespaces.append((digest, namespace))
        self.uploading.set()
        self.deadlines.append(deadline.remaining())
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise Unreachable("PUT", f"/internal/blobs/{digest}", self.failure)
        content = await asyncio.to_thread(source.read_bytes)
        assert len(content) == size
        assert Digest.of(content, digest.algorithm) == digest
        self.blobs[digest], self.copies[digest] = content, 3
        return None

    async def stat(
        self, digest: Digest, *, deadline: Deadline, keep: bool = False, namespace: str = ""
    ) -> int | None:
        self._ask(digest)
        content = self.blobs.get(digest)
        return self.backed.get((namespace, digest)) if content is None else len(content)

    async def stat_many(
        self,
        digests: Iterable[Digest],
        *,
        deadline: Deadline,
        keep: bool = False,
        namespace: str = "",
    ) -> Copies:
        hosts = ["a:1", "b:1", "c:1"]
        return Copies(
            {
                digest: frozenset(hosts[: self.copies[digest]])
                for digest in digests
                if digest in self.blobs and self.failure is None
            },
            {host: Unreachable("POST", host, "refused") for host in self.silent},
        )

    async def read(
        self, digest: Digest, *, deadline: Deadline, limit: int, namespace: str = ""
    ) -> bytes:
        self._ask(digest)
        content = self._get(digest)
        if len(content) > limit:
            raise Unreachable("GET", f"/internal/blobs/{digest}", "more bytes than the limit")
        return content

    async def open(self, digest: Digest, *, deadline: Deadline, namespace: str = "") -> MemoryBlob:
        self._ask(digest)
        blob = MemoryBlob(self._get(digest))
        self.opened.append(blob)
        return blob

    async def prefetch(
        self, digest: Digest, namespace: str, *, deadline: Deadline
    ) -> PrefetchAnswer | None:
        self._ask(digest)
        if digest in self.blobs:
            return PrefetchAnswer(len(self.blobs[digest]), ready=True)
        size = self.backed.get((namespace, digest))
        if size is None:
            return None
        self.fetching.append((digest, namespace))
        return PrefetchAnswer(size, ready=False)

    def _ask(self, digest: Digest) -> None:
        if self.failure is not None:
            raise Unreachable("GET", f"/internal/blobs/{digest}", self.failure)

    def _get(self, digest: Digest) -> bytes:
        try:
            return self.blobs[digest]
        except KeyError:
            raise NotFound("GET", f"/internal/blobs/{digest}", "on no origin", status=404) from None


@dataclass
class MemoryIndex:
    """A build-index that knows what belongs to which repository; contents are at `origins`."""

    origins: MemoryOrigins
    entries: dict[tuple[str, str], Digest] = field(default_factory=dict)
    """The tags."""
    links: set[tuple[str, Digest]] = field(default_factory=set)
    manifests: dict[tuple[str, Digest], tuple[FoundManifest, Manifest]] = field(
        default_factory=dict
    )
    given: list[bytes | None] = field(default_factory=list)
    """The bytes that came with each manifest."""

    async def find_manifest(
        self,
        repository: str,
        reference: Digest | str,
        *,
        deadline: Deadline,
        rely: bool = False,
        through: bool = True,
    ) -> FoundManifest | None:
        digest = (
            reference
            if isinstance(reference, Digest)
            else self.entries.get((repository, reference))
        )
        if digest is None:
            return None
        if (repository, digest) not in self.manifests:
            # A tag of the trusted API may point to anything.
            return None if digest == reference else FoundManifest(digest, "", 0)
        return self.manifests[repository, digest][0]

    async def has_blob(
        self, repository: str, digest: Digest, *, deadline: Deadline, rely: bool = False
    ) -> bool:
        return (repository, digest) in self.links

    async def link_blob(self, repository: str, digest: Digest, *, deadline: Deadline) -> None:
        self.links.add((repository, digest))

    async def mount_blob(
        self, repository: str, digest: Digest, source: str | None, *, deadline: Deadline
    ) -> bool:
        holders = {name for name, linked in self.links if linked == digest}
        if not holders if source is None else source not in holders:
            return False
        self.links.add((repository, digest))
        return True

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
    ) -> None:
        self.given.append(body)
        if body is None:
            if digest not in self.origins.blobs:
                raise ManifestBlobUnknown.missing([digest], "all origins were asked")
            body = self.origins.blobs[digest]
        parsed = parse_manifest(body, media_type)
        needed = {entry.digest for entry in parsed.blobs()}
        missing = {it for it in needed if (repository, it) not in self.links}
        if index_children in {None, "required"}:
            children = {entry.digest for entry in parsed.children}
            missing |= {it for it in children if (repository, it) not in self.manifests}
        if missing:
            raise ManifestBlobUnknown.missing(missing, f"members of {repository}")
        found = FoundManifest(digest, parsed.media_type, len(body))
        self.manifests[repository, digest] = found, parsed
        for tag in tags:
            self.entries[repository, tag] = digest

    async def delete_tag(self, repository: str, tag: str, *, deadline: Deadline) -> bool:
        return self.entries.pop((repository, tag), None) is not None

    async def delete_manifest(self, repository: str, digest: Digest, *, deadline: Deadline) -> bool:
        if self.manifests.pop((repository, digest), None) is None:
            return False
        for key, named in list(self.entries.items()):
            if key[0] == repository and named == digest:
                del self.entries[key]
        return True

    async def delete_blob(self, repository: str, digest: Digest, *, deadline: Deadline) -> bool:
        users = [
            str(named)
            for (name, named), (_, parsed) in self.manifests.items()
            if name == repository and digest in parsed.references()
        ]
        if users:
            raise Unsupported(f"{digest} is needed by {', '.join(users)}; delete these first")
        if (repository, digest) not in self.links:
            return False
        self.links.remove((repository, digest))
        return True

    async def referrers(
        self,
        repository: str,
        subject: Digest,
        *,
        artifact_type: str | None,
        n: int,
        last: str,
        deadline: Deadline,
    ) -> list[Referrer]:
        found = [
            Referrer(it.digest, it.media_type, it.size, parsed.artifact_type, parsed.annotations)
            for (name, _), (it, parsed) in self.manifests.items()
            if name == repository
            and parsed.subject is not None
            and parsed.subject.digest == subject
            and artifact_type in {None, parsed.artifact_type}
            and str(it.digest) > last
        ]
        characters, given = 0, []
        for it in sorted(found, key=lambda it: str(it.digest))[:n]:
            given.append(it)
            characters += it.characters()
            if characters >= LARGE_REFERRERS:
                break
        return given

    async def tags(self, repository: str, n: int, last: str, *, deadline: Deadline) -> list[str]:
        if repository not in self._names():
            raise NameUnknown(f"nothing in {repository}")
        tags = sorted(tag for name, tag in self.entries if name == repository)
        return [tag for tag in tags if tag > last][:n]

    async def repositories(self, n: int, last: str, *, deadline: Deadline) -> list[str]:
        return [name for name in sorted(self._names()) if name > last][:n]

    def _names(self) -> set[str]:
        return {name for name, _ in (*self.entries, *self.links, *self.manifests)}


@dataclass
class MemoryUpload:
    """What a session has received, and whether a request holds it."""

    repository: str
    algorithm: str
    content: bytearray = field(default_factory=bytearray)
    held: bool = False


class MemoryRegistry:
    """Both ports of the registry API, with everything in memory."""

    def __init__(self, *, idle_timeout: float = 5.0) -> None:
        """`idle_timeout` (seconds) bounds the wait for the next bytes of an upload."""
        self.origins = MemoryOrigins()
        self.index = MemoryIndex(self.origins)
        self.uploads: dict[str, MemoryUpload] = {}
        self.receiving = asyncio.Event()
        """Set when the first bytes of a chunk have come."""
        self.contents_read = 0
        """How many manifests were read."""
        self._idle_timeout = idle_timeout

    def hold(self, content: bytes, *repositories: str, algorithm: str = "sha256") -> Digest:
        """Have a blob that belongs to the repositories."""
        digest = Digest.of(content, algorithm)
        self.origins.blobs[digest], self.origins.copies[digest] = content, 3
        self.index.links |= {(name, digest) for name in repositories}
        return digest

    # -- Reader -----------------------------------------------------------------------------

    async def find_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        found = await self.index.find_manifest(repository, reference, deadline=deadline)
        if found is None:
            raise ManifestUnknown(f"no manifest {reference} in {repository}")
        return found

    async def stat_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        return await self.find_manifest(repository, reference, deadline)

    async def manifest(self, repository: str, found: FoundManifest, deadline: Deadline) -> bytes:
        self.contents_read += 1
        return self.origins.blobs[found.digest]

    async def stat_blob(self, repository: str, digest: Digest, deadline: Deadline) -> int:
        return (await self.open_blob(repository, digest, deadline)).size

    async def open_blob(self, repository: str, digest: Digest, deadline: Deadline) -> MemoryBlob:
        if self.origins.failure is not None:
            raise Unreachable("GET", f"/internal/blobs/{digest}", self.origins.failure)
        if (repository, digest) not in self.index.links:
            raise BlobUnknown(f"no blob {digest} in {repository}")
        return await self.origins.open(digest, deadline=deadline)

    async def tags(self, repository: str, n: int, last: str, deadline: Deadline) -> list[str]:
        return await self.index.tags(repository, n, last, deadline=deadline)

    async def repositories(self, n: int, last: str, deadline: Deadline) -> list[str]:
        return await self.index.repositories(n, last, deadline=deadline)

    async def referrers(  # noqa: PLR0917 -- as the port has them
        self,
        repository: str,
        subject: Digest,
        artifact_type: str | None,
        n: int,
        last: str,
        deadline: Deadline,
    ) -> list[Referrer]:
        return await self.index.referrers(
            repository, subject, artifact_type=artifact_type, n=n, last=last, deadline=deadline
        )

    # -- Writer -----------------------------------------------------------------------------

    async def start_upload(self, repository: str, algorithm: str = "sha256") -> str:
        upload = secrets.token_hex(16)
        self.uploads[upload] = MemoryUpload(repository, algorithm)
        return upload

    async def upload_size(self, repository: str, upload: str) -> int:
        return len(self._upload(repository, upload).content)

    async def append(self, repository: str, upload: str, chunk: Chunk) -> int:
        with self._held(repository, upload) as session:
            return await self._append(session, chunk)

    async def finish(
        self, repository: str, upload: str, digest: Digest, chunk: Chunk | None, deadline: Deadline
    ) -> None:
        if upload not in self.uploads and (repository, digest) in self.index.links:
            return  # the client repeats a PUT whose answer it never saw
        with self._held(repository, upload) as session:
            if chunk is not None:
                await self._append(session, chunk)
            found = Digest.of(session.content, digest.algorithm)
            if found != digest:
                del self.uploads[upload]
                raise DigestInvalid(f"the bytes received have the digest {found}, not {digest}")
            if self.origins.failure is not None:
                raise Unavailable(f"{digest} is not stored: {self.origins.failure}")
            self.hold(bytes(session.content), repository, algorithm=digest.algorithm)
            del self.uploads[upload]

    async def cancel(self, repository: str, upload: str) -> None:
        with self._held(repository, upload):
            del self.uploads[upload]

    async def mount(
        self, repository: str, digest: Digest, source: str | None, deadline: Deadline
    ) -> bool:
        return await self.index.mount_blob(repository, digest, source, deadline=deadline)

    async def put_manifest(
        self,
        repository: str,
        reference: Digest | str,
        body: bytes,
        content_type: str | None,
        deadline: Deadline,
        *,
        tags: Sequence[str] = (),
        index_children: IndexChildren | None = None,
    ) -> StoredManifest:
        named: tuple[str, ...] = tuple(tags)
        if isinstance(reference, str):
            named, digest = (reference,), Digest.of(body)
        else:
            digest = Digest.of(body, reference.algorithm)
        if digest != reference and not isinstance(reference, str):
            raise DigestInvalid(f"the bytes received have the digest {digest}, not {reference}")
        try:
            parsed = parse_manifest(body, content_type)
        except InvalidManifest as error:
            raise ManifestInvalid(str(error)) from error
        await self.index.put_manifest(
            repository,
            digest,
            body,
            content_type,
            tags=named,
            deadline=deadline,
            index_children=index_children,
        )
        self.origins.blobs[digest] = body
        subject = None if parsed.subject is None else parsed.subject.digest
        return StoredManifest(digest, subject, tuple(tags), parsed.warnings())

    async def delete_tag(self, repository: str, tag: str, deadline: Deadline) -> None:
        if not await self.index.delete_tag(repository, tag, deadline=deadline):
            raise ManifestUnknown(f"no tag {tag} in {repository}")

    async def delete_manifest(self, repository: str, digest: Digest, deadline: Deadline) -> None:
        if not await self.index.delete_manifest(repository, digest, deadline=deadline):
            raise ManifestUnknown(f"no manifest {digest} in {repository}")

    async def delete_blob(self, repository: str, digest: Digest, deadline: Deadline) -> None:
        if not await self.index.delete_blob(repository, digest, deadline=deadline):
            raise BlobUnknown(f"no blob {digest} in {repository}")

    # -- sessions ---------------------------------------------------------------------------

    def _upload(self, repository: str, upload: str) -> MemoryUpload:
        session = self.uploads.get(upload)
        if session is None or session.repository != repository:
            raise BlobUploadUnknown(f"no upload {upload[:80]!r} in {repository}")
        return session

    @contextmanager
    def _held(self, repository: str, upload: str) -> Iterator[MemoryUpload]:
        session = self._upload(repository, upload)
        if session.held:
            raise UploadConflict(f"another request writes to upload {upload}")
        session.held = True
        try:
            yield session
        finally:
            session.held = False

    async def _append(self, session: MemoryUpload, chunk: Chunk) -> int:
        before = len(session.content)
        if chunk.offset is not None and chunk.offset != before:
            raise UploadOutOfOrder(f"the chunk begins at {chunk.offset}, {before} bytes are here")
        parts = aiter(chunk.body)
        while True:
            received = len(session.content) - before
            try:
                async with asyncio.timeout(self._idle_timeout):
                    part = await anext(parts, None)
            except TimeoutError as error:
                raise ClientStalled(received, self._idle_timeout) from error
            if part is None:
                break
            if chunk.size is not None and received + len(part) > chunk.size:
                raise SizeInvalid(f"the chunk has more than the {chunk.size} bytes it named")
            session.content += part
            self.receiving.set()
        if chunk.size not in {None, received}:
            raise SizeInvalid(f"the chunk was to have {chunk.size} bytes, and {received} came")
        return len(session.content)
