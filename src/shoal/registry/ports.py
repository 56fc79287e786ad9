# SPDX-License-Identifier: Apache-2.0
"""What the registry API asks of the service behind it.

The proxy implements both protocols, the agent the reading half. Every method raises the errors of
`shoal.model.errors` for what the client must be told; a failure to ask another service may pass
through as `shoal.web.failures.CallFailed`, which the server renders as UNAVAILABLE.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.model.digest import Digest
from shoal.model.errors import BlobUploadInvalid
from shoal.model.manifest import FoundManifest, IndexChildren, Referrer
from shoal.web.bodies import Blob
from shoal.web.deadline import Deadline


class ClientGone(BlobUploadInvalid):
    """400: the connection broke, or its framing did, before the body was whole."""


class ClientStalled(BlobUploadInvalid):
    """408: the client sent nothing for too long; what came before is kept where it can be."""

    status = 408

    def __init__(self, received: int, idle_timeout: float) -> None:
        super().__init__(
            f"nothing came for {idle_timeout:g} s after {received} bytes of the body; "
            "ask the upload for its range and resume"
        )


class Reader(Protocol):
    """Pulling: manifests, blobs, referrers and listings. Every read is within one repository."""

    async def find_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        """Return what a tag or digest names now, without its bytes; raise `ManifestUnknown`."""
        ...

    async def stat_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        """As `find_manifest`, for a client that may ask only to find out what it need not push."""
        ...

    async def manifest(self, repository: str, found: FoundManifest, deadline: Deadline) -> bytes:
        """Return the verified bytes of a manifest; raise `ManifestUnknown`."""
        ...

    async def stat_blob(self, repository: str, digest: Digest, deadline: Deadline) -> int:
        """Return the blob's size without fetching it; raise `BlobUnknown`."""
        ...

    async def open_blob(self, repository: str, digest: Digest, deadline: Deadline) -> Blob:
        """Open the blob for reading, possibly while it still arrives; raise `BlobUnknown`."""
        ...

    async def tags(self, repository: str, n: int, last: str, deadline: Deadline) -> list[str]:
        """Return at most `n` tags in lexical order, those after `last`; raise `NameUnknown`."""
        ...

    async def repositories(self, n: int, last: str, deadline: Deadline) -> list[str]:
        """Return at most `n` repository names in lexical order, those after `last`."""
        ...

    async def referrers(  # noqa: PLR0917 -- as the other listings have them
        self,
        repository: str,
        subject: Digest,
        artifact_type: str | None,
        n: int,
        last: str,
        deadline: Deadline,
    ) -> list[Referrer]:
        """Return at most `n` manifests whose subject this is, by digest, those after `last`.

        `artifact_type` leaves only those of that type; `last` is the text of a digest, or empty.
        There may be none: a subject, and a repository, need not be there to be asked about. There
        are fewer than `n` at the end of the list, and when their annotations together have at least
        `shoal.model.manifest.LARGE_REFERRERS` characters: those of one can fill a manifest.
        """
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of an upload as a request brings them, and what the request says about them."""

    body: AsyncIterator[bytes]
    offset: int | None = None
    """Where in the blob they begin (Content-Range); None: where the session ends."""
    size: int | None = None
    """How many there must be; None when the client did not say."""


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest that was stored."""

    digest: Digest
    subject: Digest | None = None
    """The manifest that it refers to, which need not be there."""
    tags: tuple[str, ...] = ()
    """The tags of ``?tag=`` that name it now."""
    warnings: tuple[str, ...] = ()
    """What whoever pushed it should be told (`Manifest.warnings`)."""


class Writer(Protocol):
    """Pushing and deleting: upload sessions, mounts, manifests, tags and blobs."""

    async def start_upload(self, repository: str, algorithm: str = "sha256") -> str:
        """Open a session for a blob whose digest will be of `algorithm`; return the session's id.

        The algorithm is a hint (it is hashed while it flows); the digest of `finish` decides.
        """
        ...

    async def upload_size(self, repository: str, upload: str) -> int:
        """Return the bytes received so far; raise `BlobUploadUnknown`."""
        ...

    async def append(self, repository: str, upload: str, chunk: Chunk) -> int:
        """Append a chunk and return the session's size.

        Raises `UploadOutOfOrder` (nothing appended), `UploadConflict` while another request writes,
        `SizeInvalid` and `ClientStalled` (what came in order is kept).
        """
        ...

    async def finish(
        self, repository: str, upload: str, digest: Digest, chunk: Chunk | None, deadline: Deadline
    ) -> None:
        """Append the last chunk, if any, verify the digest, and store the blob safely.

        Returns when the write quorum has it. Raises `DigestInvalid` (the session is gone) or
        `Unavailable` (the session is kept: the same request may be sent again).
        The deadline bounds the storing; receiving the chunk has a bound of its own.
        """
        ...

    async def cancel(self, repository: str, upload: str) -> None:
        """Drop a session and what it received; raise `BlobUploadUnknown`."""
        ...

    async def mount(
        self, repository: str, digest: Digest, source: str | None, deadline: Deadline
    ) -> bool:
        """Make a blob of `source` a member of `repository`; whether that was possible.

        Without a source, any repository that the caller may read will do.
        """
        ...

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
        """Store a manifest under a tag, or under its digest and `tags`.

        `tags` come with a digest as reference only. `index_children` says what an index needs of
        its children; None leaves it to the config.

        Raises `ManifestInvalid`, `DigestInvalid`, `ManifestBlobUnknown` or `Unavailable`.
        """
        ...

    async def delete_tag(self, repository: str, tag: str, deadline: Deadline) -> None:
        """Remove a tag, not what it names; raise `ManifestUnknown`."""
        ...

    async def delete_manifest(self, repository: str, digest: Digest, deadline: Deadline) -> None:
        """Remove a manifest and the tags that name it; raise `ManifestUnknown`."""
        ...

    async def delete_blob(self, repository: str, digest: Digest, deadline: Deadline) -> None:
        """Remove a blob from the repository; raise `BlobUnknown`.

        Raises `Unsupported` while a manifest of the repository needs it.
        """
        ...
