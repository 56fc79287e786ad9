# SPDX-License-Identifier: Apache-2.0
"""What a `put` sends, read in chunks: from a file, from memory, or from another source."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from shoal.backend.asking import Call
from shoal.backend.base import Source
from shoal.store.threads import in_thread, open_file
from shoal.web.failures import CallFailed, Rejected

CHUNK = 1024 * 1024
"""Bytes read at a time."""


async def as_source(call: Call, source: Path | bytes | Source) -> Source:
    """Give a file, bytes or a source as a source.

    A file that cannot be read is `Rejected`, here and while it is read: it is not the storage that
    fails.
    """
    if isinstance(source, bytes):
        return _Memory(source)
    if isinstance(source, Path):
        try:
            return _File(call, source, (await in_thread(source.stat)).st_size)
        except OSError as error:
            raise _unreadable(call, error) from error
    return source


class _Memory:
    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = data

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, self.size, CHUNK):
            yield self._data[start : start + CHUNK]


class _File:
    """A file as it is when the sending begins; one that shrinks meanwhile is an error."""

    def __init__(self, call: Call, path: Path, size: int) -> None:
        self.size = size
        self._call = call
        self._path = path

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            descriptor = await open_file(self._path)
        except OSError as error:
            raise _unreadable(self._call, error) from error
        try:
            for start in range(0, self.size, CHUNK):
                wanted = min(CHUNK, self.size - start)
                try:
                    chunk = await in_thread(os.pread, descriptor, wanted, start)
                except OSError as error:
                    raise _unreadable(self._call, error) from error
                if len(chunk) != wanted:
                    raise _unreadable(
                        self._call, f"{self._path} ended after {start + len(chunk)} bytes"
                    )
                yield chunk
        finally:
            os.close(descriptor)


def _unreadable(call: Call, why: object) -> CallFailed:
    return Rejected(call.method, call.url, f"what is to be stored cannot be read: {why}")
