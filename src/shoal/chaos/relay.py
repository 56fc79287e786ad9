# SPDX-License-Identifier: Apache-2.0
"""A TCP relay before a service, so that its network can fail without anyone's privileges.

The other services know the address of the relay only. Cut off, it resets the connections that it
carries, and takes new ones without ever answering: what a broken switch looks like from above.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

_CHUNK = 256 * 1024


class Relay:
    """Carries the connections of one listening address to another."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._target: tuple[str, int] | None = None
        self._pairs: set[asyncio.Task[None]] = set()
        self._joined = asyncio.Event()
        self._joined.set()
        self.address = ""

    async def listen(self, host: str) -> None:
        """Take a free port; `address` says which."""
        self._server = await asyncio.start_server(self._accept, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"{host}:{port}"

    def lead_to(self, host: str, port: int) -> None:
        """Where connections go from now on."""
        self._target = host, port

    def cut(self) -> None:
        """Reset what is connected; let nobody through."""
        self._joined.clear()
        for pair in self._pairs:
            pair.cancel()

    def join(self) -> None:
        """Let connections through again, those that wait included."""
        self._joined.set()

    async def close(self) -> None:
        """End all."""
        if self._server is not None:
            self._server.close()
        for pair in self._pairs:
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carrying = asyncio.create_task(self._carry(reader, writer))
        self._pairs.add(carrying)
        carrying.add_done_callback(self._pairs.discard)
        await asyncio.wait({carrying})

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward: asyncio.StreamWriter | None = None
        try:
            await self._joined.wait()
            if self._target is None:
                return
            back, onward = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, onward))
                both.create_task(_pump(back, writer))
        except (OSError, ExceptionGroup):
            pass  # either side may vanish at any time: that is what this is for
        finally:
            for side in (writer, onward):
                if side is not None:
                    side.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()
