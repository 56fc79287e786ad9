# SPDX-License-Identifier: Apache-2.0
"""Another OCI registry as a backend: an upstream that is pulled through, or a replication target.

What is a blob to Shoal may be a manifest there, which a registry serves under another path: both
are asked before something is not there. A manifest that is replicated arrives as a blob, too, and
becomes a manifest when its tag or link is written, which is after it and all that it needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode

from yarl import URL

from shoal.backend import credentials
from shoal.backend.asking import Call
from shoal.backend.base import (
    BlobName,
    Content,
    LinkName,
    Listing,
    Name,
    Page,
    Repositories,
    Source,
    TagName,
    TagsOf,
)
from shoal.backend.config import RegistryBackendConfig
from shoal.backend.content import TextContent
from shoal.backend.registry_body import RegistryContent
from shoal.backend.registry_http import Body, RegistryHttp, Reply, Target
from shoal.backend.registry_listing import BadListing, Part, names_in, next_link, page
from shoal.backend.safety import Refused, same_origin, shown, target
from shoal.backend.sources import as_source
from shoal.backend.upstreams import DEFAULT, Remote, Renaming, renaming_of_upstream
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.manifest import MAX_MANIFEST_BYTES, InvalidManifest, Manifest, parse_manifest
from shoal.model.media_types import MANIFEST_TYPES
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected

_ACCEPT = {"Accept": ", ".join(sorted(MANIFEST_TYPES))}
_OCTETS = {"Content-Type": "application/octet-stream"}
_MAX_LISTING = 16 * 1024 * 1024
_NO_HEAD = frozenset({400, 405, 501})
_CATALOG = "registry:catalog:*"


class RemoteManifest(NamedTuple):
    """A manifest as the registry sent it; its body has this digest and this media type."""

    digest: Digest
    media_type: str
    body: bytes


class RegistryBackend:
    """One registry."""

    def __init__(self, to: Target, names: Renaming, *, read_only: bool) -> None:
        self.description = shown(to.base)
        self.read_only = read_only
        self._base = to.base
        self._timeout = to.timeout
        self._names = names
        self._http = RegistryHttp(to)

    @classmethod
    def upstream(cls, remote: Remote) -> RegistryBackend:
        """The upstream of a repository, for all its repositories; read-only."""
        to = Target(
            base=URL(remote.url),
            label=remote.registry if remote.configured else DEFAULT,
            credentials=credentials.source(remote.config, remote.registry),
            realms=remote.config.realms,
            configured=remote.configured,
            allow_private=remote.config.allow_private,
            ca=remote.config.ca,
            timeout=remote.config.timeout,
        )
        return cls(to, renaming_of_upstream(remote.registry), read_only=True)

    @classmethod
    def of(cls, config: RegistryBackendConfig) -> RegistryBackend:
        """The backend of a config entry; it is read and written."""
        base = URL(config.url)
        host = base.host or ""
        registry = host if base.explicit_port is None else f"{host}:{base.explicit_port}"
        to = Target(
            base=base,
            label=registry,
            credentials=credentials.source(config, registry),
            realms=config.realms,
            allow_private=config.allow_private,
            ca=config.ca,
            timeout=config.timeout,
        )
        prefix, _, suffix = config.repository.partition("{repository}")
        return cls(to, Renaming(prefix, suffix), read_only=False)

    @property
    def idle(self) -> bool:
        """Whether it is asked nothing now."""
        return self._http.idle

    async def close(self) -> None:
        """Let connections go."""
        await self._http.close()

    # -- tags and manifests -------------------------------------------------------------------

    async def head_tag(self, repository: str, tag: str, deadline: Deadline) -> Digest | None:
        """The digest that a tag has now, or None: there is no such tag.

        By HEAD, which registries do not count against their rate limits, or by GET where HEAD is
        refused or brings no digest.
        """
        try:
            async with self._open(
                "HEAD", repository, f"manifests/{tag}", deadline=deadline, headers=_ACCEPT
            ) as reply:
                digest = reply.digest
        except NotFound:
            return None
        except CallFailed as error:
            if error.status not in _NO_HEAD:
                raise
            digest = None
        if digest is not None:
            return digest
        try:
            return (await self.manifest(repository, tag, deadline)).digest
        except NotFound:
            return None

    async def manifest(
        self, repository: str, reference: str | Digest, deadline: Deadline
    ) -> RemoteManifest:
        """A manifest by tag or digest.

        Raises `NotFound`, and `Rejected` for what is no manifest or does not have the digest that
        was asked for or announced.
        """
        async with self._open(
            "GET", repository, f"manifests/{reference}", deadline=deadline, headers=_ACCEPT
        ) as reply:
            body = await reply.whole(MAX_MANIFEST_BYTES)
            said = reference if isinstance(reference, Digest) else reply.digest
        digest = await in_thread(Digest.of, body, said.algorithm if said else "sha256")
        if said is not None and digest != said:
            raise reply.rejected(f"it sent {len(body)} bytes with the digest {digest} for {said}")
        content_type = reply.headers.get("Content-Type")
        try:
            parsed: Manifest = await in_thread(parse_manifest, body, content_type)
        except InvalidManifest as error:
            raise reply.rejected(f"what it sent for {reference} cannot be kept: {error}") from error
        return RemoteManifest(digest, parsed.media_type, body)

    # -- the interface of backends ------------------------------------------------------------

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        """Bytes that it has under the name, or None: it was asked, and it is not there."""
        match name:
            case TagName():
                digest = await self.head_tag(name.repository, name.tag, deadline)
                return None if digest is None else len(str(digest))
            case LinkName():
                size = await self._stat(name.repository, _link_path(name), deadline)
                return None if size is None else len(str(name.digest))
            case BlobName():
                for path in _paths(name):
                    size = await self._stat(name.repository, path, deadline)
                    if size is not None:
                        return size
                return None

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        """Bytes [start, stop); a body that breaks off is resumed by Range, as far as that works."""
        if not isinstance(name, BlobName):
            yield TextContent(str(await self._digest_of(name, deadline)), start, stop)
            return

        def opener(
            path: str, headers: Mapping[str, str], deadline: Deadline
        ) -> AbstractAsyncContextManager[Reply]:
            accept = _ACCEPT if path.startswith("manifests/") else {}
            return self._open(
                "GET",
                name.repository,
                path,
                deadline=deadline,
                headers={**accept, **headers},
                expect=(200, 206, 416),
            )

        content = RegistryContent(opener, _paths(name), start, stop, self._timeout)
        with self._http.in_use():
            try:
                await content.open(deadline)
                yield content
            finally:
                await content.close()

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        """Store a blob; or make a manifest that is there as a blob one, under its tag or digest."""
        self._check_writable("PUT", name)
        if isinstance(name, BlobName):
            await self._put_blob(
                name, await as_source(Call("PUT", self._shown(name)), source), deadline
            )
            return
        if isinstance(name, LinkName) and name.kind == "blob":
            # A registry links what it is given; there is only to see that it was.
            if await self._stat(name.repository, _link_path(name), deadline) is None:
                raise NotFound("PUT", self._shown(name), "its blob has not been stored there yet")
            return
        if isinstance(name, LinkName):
            if await self._stat(name.repository, _link_path(name), deadline) is None:
                await self._put_manifest(name, name.digest, str(name.digest), deadline)
            return
        content = await as_source(Call("PUT", self._shown(name)), source)
        text = b"".join([chunk async for chunk in content.chunks()]).decode(errors="replace")
        try:
            digest = Digest.parse(text.strip())
        except InvalidDigest as error:
            raise Rejected("PUT", self._shown(name), f"a tag is a digest: {error}") from error
        await self._put_manifest(name, digest, name.tag, deadline)

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        """Tags of a repository, or repositories by their names in Shoal; blobs cannot be listed."""
        match listing:
            case TagsOf():
                repository = self._names.there(listing.repository)
                url, scope = self._url(repository, "tags/list"), _scope(repository, "pull")
            case Repositories():
                url, scope = self._join("_catalog"), _CATALOG
            case _:
                raise Rejected("GET", self.description, "a registry cannot list its blobs")

        async def fetch(link: str | None, query: Mapping[str, str]) -> Part:
            try:
                part = await self._part(url, scope, link, query, deadline)
            except NotFound:
                return Part([], None)
            if isinstance(listing, TagsOf):
                return part
            here = map(self._names.here, part.names)
            return Part([name for name in here if name is not None], part.link)

        try:
            return await page(fetch, after, limit)
        except BadListing as error:
            raise Rejected("GET", shown(url), str(error)) from error

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        """Remove it from the repository; `Rejected` where the registry does not delete such."""
        self._check_writable("DELETE", name)
        for path in _paths(name):
            try:
                async with self._open(
                    "DELETE",
                    name.repository,
                    path,
                    deadline=deadline,
                    actions="delete",
                    expect=(200, 202, 204),
                ):
                    return True
            except NotFound:
                continue
        return False

    # -- blobs --------------------------------------------------------------------------------

    async def _put_blob(self, name: BlobName, source: Source, deadline: Deadline) -> None:
        path = f"blobs/{name.digest}"
        if await self._stat(name.repository, path, deadline, actions="pull,push") == source.size:
            return
        async with self._push(
            "POST", self._url_of(name.repository, "blobs/uploads/"), name, deadline
        ) as reply:
            location = self._location(reply)
        async with self._push(
            "PATCH", location, name, deadline, body=source.chunks, size=source.size
        ) as reply:
            location = self._location(reply)
        query = f"digest={quote(str(name.digest), safe=':')}"
        finish = URL(f"{location}{'&' if location.query_string else '?'}{query}", encoded=True)
        async with self._push("PUT", finish, name, deadline, expect=(201, 204)):
            pass

    def _push(
        self,
        method: str,
        url: URL,
        name: BlobName,
        deadline: Deadline,
        *,
        body: Body = b"",
        size: int = 0,
        expect: Collection[int] = (202,),
    ) -> AbstractAsyncContextManager[Reply]:
        """One step of an upload; only PATCH has a body."""
        return self._http.open(
            method,
            url,
            _scope(self._names.there(name.repository), "pull,push"),
            deadline=deadline,
            headers={**_OCTETS, "Content-Length": str(size)},
            body=body,
            expect=expect,
            transfer=True,
        )

    def _location(self, reply: Reply) -> URL:
        try:
            return target(reply.location, reply.headers.get("Location", ""))
        except Refused as error:
            raise reply.rejected(f"its upload cannot go on: {error}") from None

    # -- manifests ----------------------------------------------------------------------------

    async def _put_manifest(
        self, name: TagName | LinkName, digest: Digest, reference: str, deadline: Deadline
    ) -> None:
        body, parsed = await self._stored_manifest(name, digest, deadline)
        try:
            async with self._http.open(
                "PUT",
                self._url_of(name.repository, f"manifests/{reference}"),
                _scope(self._names.there(name.repository), "pull,push"),
                deadline=deadline,
                headers={"Content-Type": parsed.media_type},
                body=body,
                expect=(200, 201, 202),
            ):
                pass
        except Rejected as error:
            if error.code not in ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"):
                raise
            # What it needs is on its way by the queues of the origins: a later try may succeed.
            raise NotFound(
                "PUT", error.url, error.detail, status=error.status, body=error.body
            ) from error

    async def _stored_manifest(
        self, name: TagName | LinkName, digest: Digest, deadline: Deadline
    ) -> tuple[bytes, Manifest]:
        """A manifest that the registry has, as one or as a blob."""
        body = bytearray()
        try:
            async with self.get(BlobName(name.repository, digest), deadline=deadline) as content:
                if content.size > MAX_MANIFEST_BYTES:
                    raise Rejected(
                        "PUT", self._shown(name), f"{digest} has {content.size} bytes: no manifest"
                    )
                async for chunk in content.chunks():
                    body += chunk
        except NotFound as error:
            raise NotFound(
                "PUT", self._shown(name), f"{digest} has not been stored there yet"
            ) from error
        found = await in_thread(Digest.of, body, digest.algorithm)
        if found != digest:
            raise Rejected("PUT", self._shown(name), f"it has {found} under {digest}")
        try:
            return bytes(body), await in_thread(parse_manifest, bytes(body))
        except InvalidManifest as error:
            raise Rejected("PUT", self._shown(name), f"{digest}: {error}") from error

    async def _digest_of(self, name: TagName | LinkName, deadline: Deadline) -> Digest:
        if isinstance(name, TagName):
            digest = await self.head_tag(name.repository, name.tag, deadline)
        else:
            size = await self._stat(name.repository, _link_path(name), deadline)
            digest = None if size is None else name.digest
        if digest is None:
            raise NotFound("GET", self._shown(name), "it is not there")
        return digest

    # -- requests -----------------------------------------------------------------------------

    async def _stat(
        self, repository: str, path: str, deadline: Deadline, *, actions: str = "pull"
    ) -> int | None:
        """The bytes under a path: by HEAD, or by the head of a GET where that does not say it."""
        headers = _ACCEPT if path.startswith("manifests/") else {}

        async def length(method: str) -> int | None:
            async with self._open(
                method, repository, path, deadline=deadline, headers=headers, actions=actions
            ) as reply:
                if reply.length is None and method == "GET":
                    raise reply.failed("it does not say how many bytes it has (Content-Length)")
                return reply.length

        try:
            try:
                size = await length("HEAD")
            except CallFailed as error:
                if error.status not in _NO_HEAD:
                    raise
                size = None
            return await length("GET") if size is None else size
        except NotFound:
            return None

    async def _part(
        self,
        url: URL,
        scope: str,
        link: str | None,
        query: Mapping[str, str],
        deadline: Deadline,
    ) -> Part:
        asked = URL(f"{url}?{urlencode(query)}", encoded=True)
        if link is not None:
            asked = URL(link, encoded=True)
        async with self._http.open("GET", asked, scope, deadline=deadline) as reply:
            names = names_in(await reply.whole(_MAX_LISTING))
            link = next_link(reply.headers)
            if link is None:
                return Part(names, None)
            try:
                following = target(reply.location, link)
            except Refused as error:
                raise reply.rejected(f"its next page is not asked for: {error}") from None
            if not same_origin(following, self._base):
                raise reply.rejected("its next page is at another host, which is not asked")
            return Part(names, str(following))

    def _open(
        self,
        method: str,
        repository: str,
        path: str,
        *,
        deadline: Deadline,
        headers: Mapping[str, str] | None = None,
        actions: str = "pull",
        expect: Collection[int] = (200,),
    ) -> AbstractAsyncContextManager[Reply]:
        scope = _scope(self._names.there(repository), actions)
        url = self._url_of(repository, path)
        return self._http.open(
            method, url, scope, deadline=deadline, headers=headers, expect=expect
        )

    def _url_of(self, repository: str, path: str) -> URL:
        return self._url(self._names.there(repository), path)

    def _url(self, repository: str, path: str) -> URL:
        return self._join(f"{quote(repository)}/{path}")

    def _join(self, path: str) -> URL:
        return URL(f"{str(self._base).rstrip('/')}/v2/{path}", encoded=True)

    def _shown(self, name: Name) -> str:
        what = name.tag if isinstance(name, TagName) else str(name.digest)
        return f"{self.description} {self._names.there(name.repository)} {what}"

    def _check_writable(self, method: str, name: Name) -> None:
        if self.read_only:
            raise Rejected(method, self._shown(name), "an upstream is only read")


def _scope(repository: str, actions: str) -> str:
    return f"repository:{repository}:{actions}"


def _paths(name: Name) -> list[str]:
    """Where a name may be, in the order in which it is asked for."""
    match name:
        case TagName():
            return [f"manifests/{name.tag}"]
        case LinkName():
            return [_link_path(name)]
        case BlobName():
            return [f"blobs/{name.digest}", f"manifests/{name.digest}"]


def _link_path(name: LinkName) -> str:
    return f"{'blobs' if name.kind == 'blob' else 'manifests'}/{name.digest}"


__all__ = ["RegistryBackend", "RemoteManifest"]
