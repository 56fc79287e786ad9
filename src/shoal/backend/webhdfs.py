# SPDX-License-Identifier: Apache-2.0
"""Storage in HDFS, by WebHDFS (Hadoop, "WebHDFS REST API").

A file is written under a name of its own, its length is checked, and only then it is renamed over
the final one: readers see the old content or the new one, whole. It is as durable as HDFS makes a
closed file: on the write pipeline's data nodes, in their memory or on their disks.
"""

from __future__ import annotations

import asyncio
import builtins
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from yarl import URL

from shoal.backend.asking import Call
from shoal.backend.base import Blobs, Content, Listing, Name, Page, Source, TagName, TagsOf
from shoal.backend.config import WebHdfsBackendConfig
from shoal.backend.listing import blobs, page_of, repositories, tags
from shoal.backend.paths import NoPath
from shoal.backend.sources import as_source
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable

_UPLOADS = "_uploads"
"""Folder of what is being written; no name of a layout begins with it."""

_ELSEWHERE = frozenset({"StandbyException", "RetriableException", "SafeModeException"})
"""What a name node says that does not serve now."""

_DENIED = frozenset({"AccessControlException", "SecurityException", "AuthorizationException"})


class _FileStatus(msgspec.Struct):
    length: int
    type: str
    path_suffix: str = msgspec.field(name="pathSuffix", default="")


class _FileStatusAnswer(msgspec.Struct):
    status: _FileStatus = msgspec.field(name="FileStatus")


class _Statuses(msgspec.Struct):
    statuses: list[_FileStatus] = msgspec.field(name="FileStatus")


class _PartialListing(msgspec.Struct):
    listing: _Statuses = msgspec.field(name="FileStatuses")


class _DirectoryListing(msgspec.Struct):
    partial: _PartialListing = msgspec.field(name="partialListing")
    remaining: int = msgspec.field(name="remainingEntries")


class _ListingAnswer(msgspec.Struct):
    listing: _DirectoryListing = msgspec.field(name="DirectoryListing")


class _Boolean(msgspec.Struct):
    boolean: bool


class WebHdfsBackend:
    """Names as files below a root of one cluster."""

    def __init__(self, config: WebHdfsBackendConfig, http: HttpClient) -> None:
        self._config = config
        self._layout = config.layout
        self._http = http
        self._active = 0
        """The name node that served last; it is asked first."""
        self._dropping: set[asyncio.Task[None]] = set()

    @property
    def description(self) -> str:
        return f"webhdfs://{','.join(self._config.name_nodes)}/{self._layout.root}"

    @property
    def read_only(self) -> bool:
        return False

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        found = await self._status(self._path("HEAD", name), deadline)
        return None if found is None or found.type != "FILE" else found.length

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        path = self._path("GET", name)
        found = await self._status(path, deadline)
        if found is None or found.type != "FILE":
            raise NotFound("GET", self._shown(path), "it is not there", status=404)
        first = min(start, found.length)
        last = found.length if stop is None else min(stop, found.length)
        if last <= first:
            yield _Body(Call("GET", self._shown(path)), None, found.length, 0)
            return
        opening = await self._ask(
            "GET",
            path,
            "OPEN",
            deadline,
            {"offset": str(first), "length": str(last - first), "noredirect": "false"},
            expect=(307,),
        )
        async with self._http.stream(
            "GET",
            self._data_node(opening),
            deadline=deadline,
            expect=(200,),
            idle_timeout=self._config.timeout,
        ) as answer:
            call = Call("GET", self._shown(path))
            yield _Body(call, answer.chunks(), found.length, last - first)

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        path = self._path("PUT", name)
        content = await as_source(Call("PUT", self._shown(path)), source)
        temp = "/".join(filter(None, (self._layout.root, _UPLOADS, uuid.uuid4().hex)))
        try:
            await self._write(temp, content, deadline)
            written = await self._status(temp, deadline)
            if written is None or written.length != content.size:
                got = 0 if written is None else written.length
                raise Unreachable(
                    "PUT", self._shown(path), f"only {got} of {content.size} bytes were stored"
                )
            await self._ask("PUT", path.rpartition("/")[0], "MKDIRS", deadline)
            await self._rename(temp, path, deadline)
        except BaseException:
            # Who asked does not wait for that.
            task = asyncio.create_task(self._drop(temp))
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)
            raise

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        call = Call("LIST", f"{self.description} ({listing})")
        folders = _Folders(self, deadline)
        try:
            if isinstance(listing, TagsOf):
                return await page_of(tags(folders, self._layout, listing, after), limit)
            if isinstance(listing, Blobs):
                found = blobs(folders, self._layout, listing.repository, after)
                return await page_of(found, limit)
            return await page_of(repositories(folders, self._layout, after), limit)
        except NoPath as error:
            raise call.rejected(str(error)) from error

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        path = self._path("DELETE", name)
        if isinstance(name, TagName):
            path = self._layout.tag(name)
        answer = await self._ask("DELETE", path, "DELETE", deadline, {"recursive": "true"})
        return answer.decode(_Boolean).boolean

    async def close(self) -> None:
        """Wait for what is being cleaned up; the HTTP client is the process's."""
        await asyncio.gather(*self._dropping)

    async def children(self, path: str, deadline: Deadline) -> Sequence[str]:
        """What lies in a folder, asked for in the parts in which a name node gives it."""
        names: builtins.list[str] = []
        while True:
            params = {"startAfter": names[-1]} if names else {}
            try:
                answer = await self._ask("GET", path, "LISTSTATUS_BATCH", deadline, params)
            except NotFound:
                return names
            part = answer.decode(_ListingAnswer).listing
            found = [status.path_suffix for status in part.partial.listing.statuses]
            names += found
            if not part.remaining or not found:
                return names

    async def _status(self, path: str, deadline: Deadline) -> _FileStatus | None:
        try:
            answer = await self._ask("GET", path, "GETFILESTATUS", deadline)
        except NotFound:
            return None
        return answer.decode(_FileStatusAnswer).status

    async def _write(self, path: str, content: Source, deadline: Deadline) -> None:
        created = await self._ask(
            "PUT", path, "CREATE", deadline, {"overwrite": "true"}, expect=(307,)
        )
        await self._http.call(
            "PUT",
            self._data_node(created),
            deadline=deadline,
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(content.size),
            },
            data=content.chunks(),
            expect=(200, 201),
        )

    async def _rename(self, temp: str, path: str, deadline: Deadline) -> None:
        params = {"destination": f"/{path}", "renameoptions": "OVERWRITE"}
        answer = await self._ask("PUT", temp, "RENAME", deadline, params)
        # With the option, there is no answer but the status; a boolean comes from a server that
        # does not know it.
        if answer.body.strip() and not answer.decode(_Boolean).boolean:
            raise Rejected(
                "PUT",
                self._shown(path),
                "the server cannot rename over a file that is there (renameoptions=OVERWRITE)",
            )

    async def _drop(self, temp: str) -> None:
        try:
            deadline = Deadline.after(self._config.timeout)
            await self._ask("DELETE", temp, "DELETE", deadline)
        except CallFailed:
            # It stays under `_uploads`, where nobody reads it.
            return

    async def _ask(
        self,
        method: str,
        path: str,
        operation: str,
        deadline: Deadline,
        params: Mapping[str, str] | None = None,
        *,
        expect: tuple[int, ...] = (200,),
    ) -> Answer:
        """Ask the active name node: the one that served last, then the others in their order."""
        nodes = self._config.name_nodes
        first = self._active
        failures: builtins.list[CallFailed] = []
        for number in (first, *(n for n in range(len(nodes)) if n != first)):
            try:
                answer = await self._http.call(
                    method,
                    self._url(nodes[number], path, operation, params or {}),
                    deadline=deadline.at_most(self._config.timeout),
                    expect=expect,
                )
            except CallFailed as error:
                failure = _meaning(error, method, self._shown(path))
                if not isinstance(failure, Unreachable | Overloaded):
                    raise failure from error
                failures.append(failure)
                continue
            self._active = number
            return answer
        raise Unreachable(
            method,
            self._shown(path),
            f"no name node serves: {'; '.join(str(failure.detail) for failure in failures)}",
            causes=failures,
        ) from failures[0]

    def _url(self, node: str, path: str, operation: str, params: Mapping[str, str]) -> str:
        query = {"op": operation, **params}
        if self._config.user is not None:
            query["user.name"] = self._config.user
        scheme = "https" if self._config.tls else "http"
        return f"{scheme}://{node}/webhdfs/v1/{quote(path)}?{urlencode(query)}"

    def _data_node(self, answer: Answer) -> str:
        location = answer.headers.get("Location", "")
        try:
            url = URL(location)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise Unreachable(
                answer.method,
                answer.url.partition("?")[0],
                "the name node did not say which data node to ask",
            )
        return location

    def _path(self, method: str, name: Name) -> str:
        try:
            return self._layout.path(name)
        except NoPath as error:
            raise Rejected(method, self.description, str(error)) from error

    def _shown(self, path: str) -> str:
        return f"webhdfs://{self._config.name_nodes[self._active]}/{path}"


class _Folders:
    def __init__(self, backend: WebHdfsBackend, deadline: Deadline) -> None:
        self._backend = backend
        self._deadline = deadline

    async def children(self, path: str) -> Sequence[str]:
        return await self._backend.children(path, self._deadline)


class _Body:
    def __init__(
        self, call: Call, chunks: AsyncIterator[bytes] | None, size: int, expected: int
    ) -> None:
        self.size = size
        self._call = call
        self._chunks = chunks
        self._expected = expected

    async def chunks(self) -> AsyncIterator[bytes]:
        if self._chunks is None:
            return
        received = 0
        async for chunk in self._chunks:
            received += len(chunk)
            yield chunk
        if received != self._expected:
            raise self._call.short(received, self._expected)


def _meaning(error: CallFailed, method: str, shown: str) -> CallFailed:
    """What a name node's exception means (WebHDFS, "Error Responses")."""
    exception, message = _remote(error.body)
    detail = f"{exception}: {message}" if exception else error.detail
    kind: type[CallFailed] = type(error)
    if exception in _ELSEWHERE:
        kind = Overloaded
    elif exception == "FileNotFoundException":
        return NotFound(method, shown, "it is not there", status=404)
    elif exception in _DENIED or error.status in (401, 403):
        kind, detail = Rejected, f"the user may not do this: {detail}"
    elif isinstance(error, NotFound):
        kind, detail = Rejected, f"this is no WebHDFS: {detail}"
    return kind(method, shown, detail, status=error.status, retry_after=error.retry_after)


def _remote(body: Any) -> tuple[str, str]:
    try:
        remote = body["RemoteException"]
        return str(remote["exception"]), str(remote["message"]).partition("\n")[0][:200]
    except (TypeError, KeyError):
        return "", ""
