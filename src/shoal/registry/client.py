# SPDX-License-Identifier: Apache-2.0
"""A small client of the OCI distribution API: what `shoal demo` and the tests push and pull with.

Calls raise `shoal.web.failures.CallFailed` when they do not get the answer that they need.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlencode, urljoin

import msgspec

from shoal.model.digest import Digest
from shoal.model.manifest import Referrer
from shoal.model.media_types import MANIFEST_TYPES
from shoal.store.threads import in_thread
from shoal.web.client import Answer, HttpClient, StreamedAnswer
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound, Rejected

Way = Literal["patch", "stream", "chunks", "put"]
"""How a blob is sent: one PATCH with Content-Length (skopeo), one PATCH in chunked encoding
(docker, podman), PATCHes with Content-Range (regctl), or one PUT with the body (containerd)."""

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PulledManifest:
    """A manifest as the registry sent it; its digest is verified."""

    body: bytes
    media_type: str
    digest: Digest


class RegistryClient:
    """One registry: a proxy or an agent of Shoal, or any other."""

    def __init__(self, http: HttpClient, base: str, *, timeout: float = 60.0) -> None:
        """`base` is like ``http://127.0.0.1:5000``; `timeout` (seconds) bounds each request."""
        self._http = http
        self._base = base.rstrip("/")
        self._timeout = timeout

    async def ping(self) -> None:
        """Return when the registry answers the version check."""
        await self._http.call("GET", f"{self._base}/v2/", deadline=self._deadline())

    # -- blobs --------------------------------------------------------------------------------

    async def stat_blob(self, repository: str, digest: Digest) -> int | None:
        """Return the size of a blob, or None when it is not there."""
        url = self._url(repository, f"blobs/{digest}")
        try:
            answer = await self._http.call("HEAD", url, deadline=self._deadline())
        except NotFound:
            return None
        return int(answer.headers["Content-Length"])

    async def push_blob(
        self,
        repository: str,
        digest: Digest,
        source: Path | bytes,
        *,
        way: Way = "patch",
        mount_from: str | None = None,
    ) -> bool:
        """Store a blob; return whether its bytes were sent, which a mount makes needless."""
        mount = None if mount_from is None else {"mount": str(digest), "from": mount_from}
        opened = await self._http.call(
            "POST",
            self._url(repository, "blobs/uploads/"),
            params=mount,
            deadline=self._deadline(),
            expect=(201, 202),
        )
        if opened.status == 201:
            return False
        size = len(source) if isinstance(source, bytes) else (await in_thread(source.stat)).st_size
        deadline = self._deadline().with_transfer(size)
        location = self._location(opened)
        match way:
            case "put":
                await self._send("PUT", _finish(location, digest), source, size, deadline)
                return True
            case "patch":
                answer = await self._send("PATCH", location, source, size, deadline)
                location = self._location(answer)
            case "stream":
                body = _chunks(source, CHUNK_BYTES)
                answer = await self._http.call(
                    "PATCH", location, data=body, deadline=deadline, expect=(202,)
                )
                location = self._location(answer)
            case "chunks":
                location = await self._send_chunks(location, source, deadline)
        await self._http.call("PUT", _finish(location, digest), deadline=deadline, expect=(201,))
        return True

    def stream_blob(
        self, repository: str, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[StreamedAnswer]:
        """Open a blob, or the half-open range of it, and stream it as it arrives.

        The bytes are not verified: only the caller sees them all. The timeout bounds the wait for
        the first of them, not the whole; the answer's own idle bound does the rest.
        """
        headers, expect = {}, (200,)
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            expect = (206,)
        return self._http.stream(
            "GET",
            self._url(repository, f"blobs/{digest}"),
            deadline=self._deadline(),
            headers=headers,
            expect=expect,
        )

    # -- manifests and tags -------------------------------------------------------------------

    async def put_manifest(
        self,
        repository: str,
        reference: Digest | str,
        body: bytes,
        media_type: str,
        *,
        tags: Sequence[str] = (),
    ) -> Digest:
        """Store a manifest under a tag or its digest; return the digest that the registry says.

        `tags` are further names for one that is pushed by its digest. Raises `Rejected` when the
        registry does not say that it set them all: one that does not know them ignores them.
        """
        query = f"?{urlencode([('tag', tag) for tag in tags])}" if tags else ""
        url = self._url(repository, f"manifests/{reference}") + query
        answer = await self._http.call(
            "PUT",
            url,
            data=body,
            headers={"Content-Type": media_type},
            deadline=self._deadline(),
            expect=(201,),
        )
        lines = [text for name, text in answer.headers.items() if name.lower() == "oci-tag"]
        if missing := set(tags) - {tag.strip() for tag in ",".join(lines).split(",")}:
            detail = f"did not set the tags {', '.join(sorted(missing))}"
            raise Rejected("PUT", url, detail, status=answer.status)
        return Digest.parse(answer.headers["Docker-Content-Digest"])

    async def delete_manifest(self, repository: str, reference: Digest | str) -> None:
        """Remove a tag, or a manifest and all tags that name it; raise `NotFound`."""
        await self._delete(self._url(repository, f"manifests/{reference}"))

    async def delete_blob(self, repository: str, digest: Digest) -> None:
        """Remove a blob from the repository; raise `NotFound`."""
        await self._delete(self._url(repository, f"blobs/{digest}"))

    async def get_manifest(self, repository: str, reference: Digest | str) -> PulledManifest:
        """Return a manifest by tag or digest; raise `Rejected` when it is not what it must be."""
        url = self._url(repository, f"manifests/{reference}")
        headers = {"Accept": ", ".join(sorted(MANIFEST_TYPES))}
        answer = await self._http.call("GET", url, headers=headers, deadline=self._deadline())
        said = (
            reference
            if isinstance(reference, Digest)
            else Digest.parse(answer.headers["Docker-Content-Digest"])
        )
        found = await in_thread(Digest.of, answer.body, said.algorithm)
        if found != said:
            raise Rejected("GET", url, f"sent {found} for {said}", status=answer.status)
        return PulledManifest(answer.body, answer.headers["Content-Type"], found)

    async def tags(self, repository: str) -> list[str]:
        """Return all tags of a repository."""
        url = self._url(repository, "tags/list")
        return [tag async for page in self._pages(url) for tag in page.decode(_TagList).tags]

    async def repositories(self) -> list[str]:
        """Return the names of all repositories."""
        url = f"{self._base}/v2/_catalog"
        return [
            name async for page in self._pages(url) for name in page.decode(_Names).repositories
        ]

    async def referrers(
        self, repository: str, subject: Digest, artifact_type: str | None = None
    ) -> list[Referrer]:
        """Return all manifests that have this subject; of one type, if one is given."""
        url = self._url(repository, f"referrers/{subject}")
        wanted = None if artifact_type is None else {"artifactType": artifact_type}
        return [
            Referrer(
                Digest.parse(it.digest), it.media_type, it.size, it.artifact_type, it.annotations
            )
            async for page in self._pages(url, wanted)
            for it in page.decode(_Referrers).manifests
            if artifact_type in {None, it.artifact_type}  # a registry may not know the filter
        ]

    # -- requests -----------------------------------------------------------------------------

    async def _pages(self, url: str, params: dict[str, str] | None = None) -> AsyncIterator[Answer]:
        """Give the pages of a listing, as far as their Link headers lead."""
        following: str | None = url
        while following is not None:
            answer = await self._http.call(
                "GET", following, params=params, deadline=self._deadline()
            )
            yield answer
            link = _NEXT.search(answer.headers.get("Link", ""))
            # The link has all parameters that the next page needs.
            following, params = (urljoin(self._base, link[1]) if link else None), None

    async def _delete(self, url: str) -> None:
        await self._http.call("DELETE", url, deadline=self._deadline(), expect=(202,))

    async def _send(
        self, method: str, url: str, source: Path | bytes, size: int, deadline: Deadline
    ) -> Answer:
        headers = {"Content-Type": "application/octet-stream"}
        expect = (201, 202)
        if isinstance(source, Path):
            return await self._http.upload(
                url, source, size, method=method, headers=headers, deadline=deadline, expect=expect
            )
        return await self._http.call(
            method, url, data=source, headers=headers, deadline=deadline, expect=expect
        )

    async def _send_chunks(self, location: str, source: Path | bytes, deadline: Deadline) -> str:
        start = 0
        async for chunk in _chunks(source, CHUNK_BYTES):
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{start}-{start + len(chunk) - 1}",
            }
            answer = await self._http.call(
                "PATCH", location, data=chunk, headers=headers, deadline=deadline, expect=(202,)
            )
            location = self._location(answer)
            start += len(chunk)
        return location

    def _deadline(self) -> Deadline:
        return Deadline.after(self._timeout)

    def _url(self, repository: str, rest: str) -> str:
        return f"{self._base}/v2/{quote(repository)}/{rest}"

    def _location(self, answer: Answer) -> str:
        return urljoin(self._base, answer.headers["Location"])


class _TagList(msgspec.Struct):
    tags: list[str]


class _Names(msgspec.Struct):
    repositories: list[str]


class _Referrer(msgspec.Struct, rename="camel"):
    digest: str
    media_type: str
    size: int
    artifact_type: str = ""
    annotations: dict[str, str] = {}


class _Referrers(msgspec.Struct):
    manifests: list[_Referrer]


_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next\b')


def _finish(location: str, digest: Digest) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


async def _chunks(source: Path | bytes, size: int) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        for start in range(0, len(source), size):
            yield source[start : start + size]
        return
    pieces = _pieces(source, size)
    while (piece := await in_thread(next, pieces, b"")) != b"":
        yield piece


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece
