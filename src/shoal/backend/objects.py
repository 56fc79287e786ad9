# SPDX-License-Identifier: Apache-2.0
"""Storage in an object store: S3, GCS, Azure Blob and memory, by obstore.

What is stored is as durable as the service says when it answers a PUT, or the end of a multipart
upload. An upload that is broken off leaves parts behind that nobody sees and that the service
charges for: let a rule of the bucket's life cycle remove incomplete uploads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import obstore

from shoal.backend.asking import Call, put_off
from shoal.backend.base import (
    Blobs,
    Content,
    Listing,
    Name,
    Page,
    Source,
    TagName,
    TagsOf,
)
from shoal.backend.listing import page_of, path_after, repositories, tags
from shoal.backend.object_errors import mapped
from shoal.backend.paths import Layout, NoPath
from shoal.backend.sources import as_source
from shoal.store.budget import ByteBudget
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected, Unreachable

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions
    from obstore.store import ObjectStore

_CHUNK = 256 * 1024
"""Bytes that are gathered before they are handed on; one such chunk may take the timeout."""

_MAX_PARTS = 10_000
"""Of one upload, at S3 and the others."""

_SLOWEST = 256 * 1024
"""Bytes per second below which an upload that moves is taken for one that stalls."""

UPLOADS = ByteBudget(80 * 1024 * 1024)
"""What uploads to object stores have in memory, over all of them in this process."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """How blobs are sent."""

    part_size: int = 8 * 1024 * 1024
    """Bytes from which a blob is sent in parts, and of a part."""

    concurrency: int = 4
    """Parts of one blob under way at once, at most; one more is being read. All are in memory."""

    timeout: float = 15.0
    """Seconds that a body may pause."""


class ObjectBackend:
    """Names as objects of one bucket or container."""

    def __init__(
        self,
        store: ObjectStore,
        layout: Layout,
        *,
        place: str,
        transfer: Transfer,
        secrets: Sequence[str] = (),
        memory: ByteBudget = UPLOADS,
    ) -> None:
        """`place`: what the store is, such as ``s3://bucket``. `secrets` stay out of errors.

        `memory` is what its uploads share with others.
        """
        self._store = store
        self._layout = layout
        self._place = place
        self._transfer = transfer
        self._secrets = tuple(secrets)
        self._memory = memory
        self._bucket_found = False

    @property
    def description(self) -> str:
        return f"{self._place}/{self._layout.root}".rstrip("/")

    @property
    def read_only(self) -> bool:
        return False

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        call, path = self._call("HEAD", name)
        try:
            async with self._asking(call, deadline):
                found = await obstore.head_async(self._store, path)
        except NotFound:
            await self._check_bucket(name, deadline)
            return None
        return found["size"]

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        call, path = self._call("GET", name)
        options: GetOptions = {}
        if stop is not None and stop > start:
            options = {"range": (start, stop)}
        elif start:
            options = {"range": {"offset": start}}
        try:
            if stop is not None and stop <= start:
                raise Rejected(call.method, call.url, "no bytes are asked for", status=416)
            async with self._asking(call, deadline):
                result = await obstore.get_async(self._store, path, options=options)
        except CallFailed as error:
            # Stores differ in what they say to a range of no bytes; whether it is one, they tell.
            size = None if not options and stop is None else await self._size(error, name, deadline)
            if size is None or (start < size and (stop is None or stop > start)):
                raise
            yield _Empty(size)
            return
        first, last = result.range
        yield _Body(
            call,
            result.stream(min_chunk_size=_CHUNK),
            size=result.meta["size"],
            expected=last - first,
            timeout=self._transfer.timeout,
            secrets=self._secrets,
        )

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        call, path = self._call("PUT", name)
        content = await as_source(call, source)
        part = max(self._transfer.part_size, -(-content.size // _MAX_PARTS))
        # The largest blobs have large parts: rather fewer at once than more memory.
        at_once = max(1, min(self._transfer.concurrency, self._memory.limit // part - 1))
        in_flight = min(content.size, part * (at_once + 1))
        try:
            async with (
                self._lent(call, in_flight, deadline),
                self._asking(call, deadline) as bound,
            ):
                if content.size <= part:
                    data = [chunk async for chunk in content.chunks()]
                    await obstore.put_async(self._store, path, data, use_multipart=False)
                    return
                await obstore.put_async(
                    self._store,
                    path,
                    _guarded(
                        content.chunks(), bound, self._transfer.timeout + in_flight / _SLOWEST
                    ),
                    chunk_size=part,
                    max_concurrency=at_once,
                )
        except CallFailed as error:
            if isinstance(error, NotFound):  # a PUT finds no bucket
                raise Rejected(call.method, call.url, "the bucket is not there") from None
            raise

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        call = Call("LIST", f"{self.description} ({listing})")
        try:
            async with self._asking(call, deadline):
                if isinstance(listing, TagsOf):
                    return await page_of(tags(self, self._layout, listing, after), limit)
                if isinstance(listing, Blobs):
                    return await page_of(self._blobs(listing.repository, after, limit), limit)
                return await page_of(repositories(self, self._layout, after), limit)
        except NoPath as error:
            raise call.rejected(str(error)) from error

    async def children(self, path: str) -> Sequence[str]:
        """The folders in a folder, as `shoal.backend.listing` asks for them."""
        found = await obstore.list_with_delimiter_async(self._store, path)
        return [prefix.rpartition("/")[2] for prefix in found["common_prefixes"]]

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        call, path = self._call("DELETE", name)
        try:
            async with self._asking(call, deadline):
                await obstore.delete_async(self._store, path)
                there = True
        except NotFound:
            there = False
        if isinstance(name, TagName):
            # Distribution keeps older digests of the tag beside it: they would still be listed.
            async with self._asking(call, deadline):
                async for chunk in obstore.list(self._store, self._layout.tag(name)):
                    await obstore.delete_async(self._store, [found["path"] for found in chunk])
        return there

    async def close(self) -> None:
        """Nothing is held but the library's pool of connections, which goes with the store."""

    async def _blobs(self, repository: str, after: str, limit: int) -> AsyncIterator[str]:
        # Digests are as long as their algorithm says, so the order of paths is theirs.
        stream = obstore.list(
            self._store,
            self._layout.blobs(repository),
            offset=path_after(self._layout, repository, after),
            chunk_size=min(limit + 1, 1000),
        )
        async for chunk in stream:
            for found in chunk:
                digest = self._layout.digest(repository, found["path"])
                # Not every server begins where it is told to: Azurite does not.
                if digest is not None and str(digest) > after:
                    yield str(digest)

    async def _size(self, error: CallFailed, name: Name, deadline: Deadline) -> int | None:
        """Bytes of the object, if the failure is one of the range that was asked for."""
        if not isinstance(error, Rejected) and error.status is not None:
            return None
        if isinstance(error, Rejected) and error.status != 416:
            return None
        size = await self.stat(name, deadline=deadline)
        if size is None:
            raise NotFound(error.method, error.url, "it is not there", status=404)
        return size

    async def _check_bucket(self, name: Name, deadline: Deadline) -> None:
        """Tell a missing object from a missing bucket, once: the answer to HEAD is the same."""
        if self._bucket_found:
            return
        call, path = self._call("GET", name)
        try:
            async with self._asking(call, deadline):
                await obstore.get_async(self._store, path)
        except NotFound:
            pass
        self._bucket_found = True

    @asynccontextmanager
    async def _lent(self, call: Call, size: int, deadline: Deadline) -> AsyncIterator[None]:
        """Have so many bytes of the memory of uploads, inside; tags and manifests need no turn."""
        if size <= _CHUNK:
            yield
            return
        try:
            async with asyncio.timeout(deadline.remaining()):
                await self._memory.take(size)
        except TimeoutError as error:
            raise Unreachable(
                call.method,
                call.url,
                "not begun by the deadline: other uploads had all the memory that uploads get",
            ) from error
        try:
            yield
        finally:
            self._memory.give_back(size)

    @asynccontextmanager
    async def _asking(self, call: Call, deadline: Deadline) -> AsyncIterator[asyncio.Timeout]:
        async with call.within(deadline) as bound:
            with mapped(call, self._secrets):
                yield bound

    def _call(self, method: str, name: Name) -> tuple[Call, str]:
        try:
            path = self._layout.path(name)
        except NoPath as error:
            raise Rejected(method, self.description, str(error)) from error
        return Call(method, f"{self._place}/{path}"), path


class _Body:
    def __init__(
        self,
        call: Call,
        stream: BytesStream,
        *,
        size: int,
        expected: int,
        timeout: float,
        secrets: Sequence[str],
    ) -> None:
        self.size = size
        self._call = call
        self._stream = stream
        self._expected = expected
        self._timeout = timeout
        self._secrets = secrets

    async def chunks(self) -> AsyncIterator[bytes]:
        received = 0
        while True:
            async with self._call.within(Deadline.after(self._timeout)):
                with mapped(self._call, self._secrets):
                    chunk = await anext(self._stream, None)
            if chunk is None:
                break
            received += len(chunk)
            for start in range(0, len(chunk), _CHUNK):
                yield chunk[start : start + _CHUNK]
        if received != self._expected:
            raise self._call.short(received, self._expected)


class _Empty:
    def __init__(self, size: int) -> None:
        self.size = size

    async def chunks(self) -> AsyncIterator[bytes]:
        nothing: tuple[bytes, ...] = ()
        for chunk in nothing:
            yield chunk


async def _guarded(
    chunks: AsyncIterator[bytes], bound: asyncio.Timeout, stall: float
) -> AsyncIterator[bytes]:
    """Hand chunks on; give up when none is taken for `stall` seconds (reading may take longer)."""
    loop = asyncio.get_running_loop()
    ends = bound.when()
    async for chunk in chunks:
        latest = loop.time() + stall
        put_off(bound, latest if ends is None else min(ends, latest))
        yield chunk
        put_off(bound, ends)
