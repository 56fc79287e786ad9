# SPDX-License-Identifier: Apache-2.0
"""Storage in a local folder, or one of a network file system.

It is done here and not by obstore, which does not sync: when a `put` returns, content and name are
on stable storage (temp file, fsync, rename, fsync of the folder), as far as the file system keeps
its word.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from shoal.backend.asking import Call
from shoal.backend.base import Blobs, Content, Listing, Name, Page, Source, TagName, TagsOf
from shoal.backend.listing import blobs, page_of, repositories, tags
from shoal.backend.paths import Layout, NoPath
from shoal.backend.sources import CHUNK, as_source
from shoal.backend.threads import Threads
from shoal.store.durable import fsync_dir, make_dirs_durably, replace_durably
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable

_INCOMING = ".incoming"
"""Folder of what is being written; no name of a layout starts with a dot."""

_LEFT_OVER = 86400.0
"""Seconds after which a file there is what a crash left."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG})


class LocalBackend:
    """Names as files below a folder."""

    def __init__(self, folder: Path, layout: Layout, *, timeout: float) -> None:
        """`timeout`: seconds that a read may take, which a network file system may exceed."""
        self._folder = folder
        self._layout = layout
        self._timeout = timeout
        self._made = False
        self._threads = Threads()

    @property
    def description(self) -> str:
        return f"file://{self._folder.absolute() / self._layout.root}"

    @property
    def read_only(self) -> bool:
        return False

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        call, path = self._call("STAT", name)
        try:
            async with self._asking(call, deadline):
                return (await self._threads.run(path.stat)).st_size
        except NotFound:
            return None

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        call, path = self._call("GET", name)
        async with self._asking(call, deadline):
            descriptor = await self._threads.open_file(path)
        try:
            async with self._asking(call, deadline):
                size = (await self._threads.run(os.fstat, descriptor)).st_size
            last = size if stop is None else min(stop, size)
            part = range(start, max(start, last))
            yield _File(call, descriptor, size, part, self._timeout, self._threads)
        finally:
            await self._threads.clean_up(os.close, descriptor)

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        call, path = self._call("PUT", name)
        content = await as_source(call, source)
        temp = self._folder / _INCOMING / uuid.uuid4().hex
        async with self._asking(call, deadline):
            await self._threads.run(_clean, temp.parent)
            incoming = _Incoming(temp, await self._threads.new_file(temp))
            try:
                written = 0
                async for chunk in content.chunks():
                    await self._threads.run(incoming.write, chunk)
                    written += len(chunk)
                if written != content.size:
                    raise call.short(written, content.size)
                await self._threads.run(_place, temp, path)
            finally:
                await self._threads.clean_up(incoming.discard)

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        call = Call("LIST", f"{self.description} ({listing})")
        try:
            async with self._asking(call, deadline):
                if isinstance(listing, TagsOf):
                    return await page_of(tags(self, self._layout, listing, after), limit)
                if isinstance(listing, Blobs):
                    found = blobs(self, self._layout, listing.repository, after)
                    return await page_of(found, limit)
                return await page_of(repositories(self, self._layout, after), limit)
        except NoPath as error:
            raise call.rejected(str(error)) from error

    async def children(self, path: str) -> Sequence[str]:
        """What lies in a folder, as `shoal.backend.listing` asks for it."""
        try:
            return await self._threads.run(os.listdir, self._folder / path)
        except FileNotFoundError:
            return []

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        call, path = self._call("DELETE", name)
        gone = self._folder / self._layout.tag(name) if isinstance(name, TagName) else path
        async with self._asking(call, deadline):
            return await self._threads.run(_remove, gone, self._folder)

    async def close(self) -> None:
        """Begin nothing more."""
        self._threads.close()

    @asynccontextmanager
    async def _asking(self, call: Call, deadline: Deadline) -> AsyncIterator[None]:
        async with call.within(deadline):
            try:
                if not self._made:
                    await self._threads.run(make_dirs_durably, self._folder)
                    self._made = True
                yield
            except FileNotFoundError as error:
                if await self._threads.run(self._folder.is_dir):
                    raise NotFound(call.method, call.url, "it is not there", status=404) from error
                # An unmounted volume is not an empty one.
                raise Unreachable(
                    call.method, call.url, f"the folder {self._folder} is gone: is it mounted?"
                ) from error
            except OSError as error:
                raise _meaning(call, error) from error

    def _call(self, method: str, name: Name) -> tuple[Call, Path]:
        try:
            path = self._folder / self._layout.path(name)
        except NoPath as error:
            raise Rejected(method, self.description, str(error)) from error
        return Call(method, f"file://{path.absolute()}"), path


class _Incoming:
    """A file that is being written. Its methods block.

    A write that hung, and that nobody waits for any more, must not go on in another file that got
    the number of this one; nor must one begin that stood in the queue until this was closed.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._writing = threading.Lock()
        self._closed = False

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with self._writing:
            while view and not self._closed:
                view = view[os.write(self._descriptor, view) :]

    def discard(self) -> None:
        """Close it, and remove it unless it got its place."""
        with self._writing:
            self._closed = True
            os.close(self._descriptor)
        self._path.unlink(missing_ok=True)


class _File:
    def __init__(  # noqa: PLR0917 -- what a read needs
        self,
        call: Call,
        descriptor: int,
        size: int,
        part: range,
        timeout: float,
        threads: Threads,
    ) -> None:
        self.size = size
        self._call = call
        self._descriptor = descriptor
        self._part = part
        self._timeout = timeout
        self._threads = threads

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(self._part.start, self._part.stop, CHUNK):
            wanted = min(CHUNK, self._part.stop - start)
            async with self._call.within(Deadline.after(self._timeout)):
                try:
                    chunk = await self._threads.run(os.pread, self._descriptor, wanted, start)
                except OSError as error:
                    raise _meaning(self._call, error) from error
            if len(chunk) != wanted:
                received = start + len(chunk) - self._part.start
                raise self._call.short(received, len(self._part))
            yield chunk


def _meaning(call: Call, error: OSError) -> CallFailed:
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return Overloaded(call.method, call.url, why, status=507)
    if error.errno in _REFUSED:
        detail = f"{why}: check the owner and mode of the folder"
        return Rejected(call.method, call.url, detail, status=403)
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return NotFound(call.method, call.url, "it is not there", status=404)
    return Unreachable(call.method, call.url, why)


def _clean(incoming: Path) -> None:
    """Make the folder of what is being written, and remove what an earlier crash left in it."""
    incoming.mkdir(parents=True, exist_ok=True)
    old = time.time() - _LEFT_OVER
    for left in incoming.iterdir():
        with suppress(FileNotFoundError):
            if left.stat().st_mtime < old:
                left.unlink()


def _place(temp: Path, final: Path) -> None:
    make_dirs_durably(final.parent)
    replace_durably(temp, final)


def _remove(path: Path, root: Path) -> bool:
    """Remove a file or a folder, and the folders above that it leaves empty; whether it was there.

    The removal is on stable storage when this returns.
    """
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    above = path.parent
    while above != root:
        try:
            above.rmdir()
        except OSError:  # not empty, or another one was faster
            break
        above = above.parent
    if above.is_dir():
        fsync_dir(above)
    return True
