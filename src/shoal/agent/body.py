# SPDX-License-Identifier: Apache-2.0
"""A blob as the agent's clients read it, possibly while it still arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from time import monotonic

from shoal.agent.timeline import Reading
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.pieces import PieceFile
from shoal.web.bodies import FileSegment

_RUN = 16 * 1024 * 1024
"""Bytes sent at most before the download is told how far the reader is."""


class AgentBlob:
    """A blob of known size whose bytes leave by sendfile as soon as they are verified."""

    def __init__(
        self, pieces: PieceFile, leeching: Callable[[], BlobSwarm | None], reading: Reading
    ) -> None:
        """`leeching`: the swarm that fetches the blob now, if one does.

        Raises what the download failed with, if it did.
        """
        self.size = pieces.metainfo.size
        self._pieces = pieces
        self._leeching = leeching
        self._reading = reading
        self._file = pieces.acquire()

    async def segments(self, start: int, stop: int) -> AsyncGenerator[FileSegment]:
        """Bytes [start, stop) in order; the download goes ahead of where this is."""
        reader = object()
        self._tell(reader, start)
        waiting = monotonic()
        try:
            async for begin, end in self._pieces.readable(start, stop):
                self._reading.got(waiting, monotonic())
                for position in range(begin, end, _RUN):
                    until = min(position + _RUN, end)
                    yield FileSegment(self._file.fd, position, until)
                    waiting = monotonic()
                    self._reading.sent_until(until - position, waiting)
                    self._tell(reader, until)
        finally:
            swarm = self._leeching()
            if swarm is not None:
                swarm.remove_reader(reader)

    def _tell(self, reader: object, position: int) -> None:
        swarm = self._leeching()
        if swarm is not None and position < self.size:
            swarm.set_reader(reader, position)

    async def close(self) -> None:
        """Let the file go."""
        self._file.release()
