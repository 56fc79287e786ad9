# SPDX-License-Identifier: Apache-2.0
"""Stands before a storage's server, and cuts or holds back its answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Self


class Relay:
    """Use `Relay.to`."""

    def __init__(self, host: str, port: int) -> None:
        self.cut_after: int | None = None
        self.stalled = False
        self.address = ""
        self.heard = bytearray()
        """All that clients sent."""
        self._to = (host, port)
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, host: str, port: int) -> AsyncIterator[Self]:
        relay = cls(host, port)
        server = await asyncio.start_server(relay._accepted, "127.0.0.1", 0)
        relay.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield relay
        finally:
            server.close()
            for task in tuple(relay._tasks):
                task.cancel()
            await asyncio.gather(*relay._tasks, return_exceptions=True)
            for writer in relay._writers:
                writer.transport.abort()
            closed = (writer.wait_closed() for writer in relay._writers)
            await asyncio.gather(*closed, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._to)
        self._writers.append(server_writer)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(reader, server_writer))
                both.create_task(self._answers(server_reader, writer))
        except* (ConnectionError, _Over):
            pass
        finally:
            writer.close()
            server_writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64 * 1024):
            self.heard += data
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        while data := await reader.read(64 * 1024):
            if self.stalled:
                await asyncio.Event().wait()
            if self.cut_after is not None and sent + len(data) > self.cut_after:
                raise _Over
            writer.write(data)
            await writer.drain()
            sent += len(data)
        raise _Over


class _Over(Exception):
    """The connection ends."""
