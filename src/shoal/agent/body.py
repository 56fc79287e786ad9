# SPDX-License-Identifier: Apache-2.0
"""A blob as the agent's clients read it, possibly while it still arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from time import monotonic

from shoal.agent.timeline import Reading
from shoal.swarm.pieces import PieceFile
from shoal.web.bodies import FileSegment

_RUN = 16 * 1024 * 1024
"""Bytes sent at most before the download is told how far the reader is."""


class AgentBlob:
    """A blob of known size whose bytes leave by sendfile as soon as they are verified."""

    def __init__(self, pieces: PieceFile, reading: Reading) -> None:
        """Raises what the download failed with, if it did."""
        self.size = pieces.metainfo.size
        self._pieces = pieces
        self._reading = reading
        self._file = pieces.acquire()

    async def segments(self, start: int, stop: int) -> AsyncGenerator[FileSegment]:
        """Bytes [start, stop) in order; the download goes ahead of where this is."""
        reader, readers = object(), self._pieces.readers
        readers.set(reader, start, stop)
        waiting = monotonic()
        try:
            async for begin, end in self._pieces.readable(start, stop):
                self._reading.got(waiting, monotonic())
                for position in range(begin, end, _RUN):
                    until = min(position + _RUN, end)
                    yield FileSegment(self._file.fd, position, until)
                    waiting = monotonic()
                    self._reading.sent_until(until - position, waiting)
                    readers.set(reader, until, stop)
        finally:
            readers.remove(reader)

    async def close(self) -> None:
        """Let the file go."""
        self._file.release()
