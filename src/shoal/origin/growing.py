# SPDX-License-Identifier: Apache-2.0
"""A blob that this origin still fetches, as others may have it already.

Peers get each piece as soon as it is in the file, and its digest from here, by way of the trackers:
the swarm is as fast as the backend, not half of it. What is given so early is what the backend sent
and no more; every agent checks the digest of the whole before it keeps anything, as does this
origin.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from shoal.model.digest import Digest
from shoal.origin.receiving import Arriving
from shoal.swarm.metainfo import Metainfo

AT_LEAST = 8
"""Pieces for which one who follows is woken, unless `AT_MOST` passed or all are here."""

AT_MOST = 0.5
"""Seconds until one who follows is told of fewer."""


HOLD = 2.0
"""Seconds for which a question is held while nothing comes."""


class Shown(Protocol):
    """The blob at this origin's peer endpoint (`shoal.swarm.blob.BlobSwarm`)."""

    def arrived(self, metainfo: Metainfo) -> None: ...

    def settled(self) -> None: ...


class Growing:
    """What is known of one blob while it comes."""

    def __init__(self, arriving: Arriving) -> None:
        self._arriving = arriving
        self.metainfo = Metainfo(
            str(arriving.digest), arriving.size, arriving.piece_size, arriving.piece_hashes
        )
        self._grown = asyncio.Event()
        self._shown: Shown | None = None
        self.file = arriving.file
        """Where it is written, until it has its place."""
        self.ended = False
        """It is whole and in its place, or was given up."""

    @property
    def digest(self) -> Digest:
        """Of the whole, as it is expected to be."""
        return self._arriving.digest

    def show(self, shown: Shown) -> None:
        """Show the pieces to peers from now on."""
        self._shown = shown

    def progressed(self) -> None:
        """More bytes may be in the file: let others know."""
        hashes = self._arriving.piece_hashes
        if len(hashes) > len(self.metainfo.pieces):
            self._grow(hashes)

    def _grow(self, hashes: bytes) -> None:
        it = self.metainfo
        self.metainfo = Metainfo(it.digest, it.size, it.piece_size, hashes)
        if self._shown is not None:
            self._shown.arrived(self.metainfo)
        self._wake()

    def end(self, metainfo: Metainfo | None) -> None:
        """It is in its place, with this metainfo; None: it was given up."""
        self.ended = True
        if metainfo is not None and len(metainfo.pieces) > len(self.metainfo.pieces):
            self._grow(metainfo.pieces)
        if metainfo is not None and self._shown is not None:
            self._shown.settled()
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def beyond(self, known: int) -> Metainfo:
        """The metainfo when it has some pieces more than `known`, or when no more will come.

        After `HOLD` seconds as it is, for who asks to ask again.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self.ended and not self.metainfo.whole:
            # The last piece before a pause of the backend has nobody else to tell of it.
            self.progressed()
            fresh, waited = self.metainfo.known - known, loop.time() - began
            if fresh >= AT_LEAST or waited >= (AT_MOST if fresh > 0 else HOLD):
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(AT_MOST):
                    await self._grown.wait()
        return self.metainfo
