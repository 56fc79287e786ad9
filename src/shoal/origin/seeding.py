# SPDX-License-Identifier: Apache-2.0
"""What the origin's peer endpoint gives: the blobs on this disk, each owner its share first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from shoal.model.digest import Digest
from shoal.origin.growing import Growing
from shoal.origin.local import LocalBlobs
from shoal.store.threads import in_thread
from shoal.swarm import bits
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.node import SwarmNode
from shoal.swarm.pieces import PieceFile, SharedFile

log = structlog.get_logger()


class SeededBlobs:
    """The blobs of this origin for its peer endpoint (`shoal.swarm.node.BlobProvider`).

    A piece that this process did not write is checked against its BLAKE3 digest before it is
    first given to anyone.
    """

    def __init__(self, local: LocalBlobs, forget: Callable[[Digest], None]) -> None:
        """`forget` takes a blob whose copy was set aside out of the peer endpoint."""
        self._local = local
        self._forget = forget
        self._checking = ThreadPoolExecutor(2, thread_name_prefix="seed")
        self._rechecks: dict[Digest, asyncio.Task[None]] = {}

    async def open(self, digest: Digest) -> PieceFile | None:
        """The pieces of a blob on this disk, or None."""
        return await in_thread(self._open, digest)

    def _open(self, digest: Digest) -> PieceFile | None:
        whole = self._local.find(digest)
        if whole is None:
            return None
        try:
            file = SharedFile(whole.blob.path)
        except FileNotFoundError:
            return None
        self._local.note_use(whole)
        present = bits.full(whole.metainfo.count)
        verified = present if self._local.is_as_written(whole) else 0
        return PieceFile(whole.metainfo, file, self._checking, present=present, verified=verified)

    async def show(self, node: SwarmNode, growing: Growing) -> BlobSwarm:
        """Give the pieces of a blob that still comes to peers, as each is there."""
        file = await in_thread(SharedFile, growing.file)
        return node.add(PieceFile(growing.metainfo, file, self._checking, present=0, verified=0))

    def damaged(self, digest: Digest, index: int) -> None:
        """A piece is not what it should be: read the whole copy again, and set it aside."""
        log.error("damaged piece", digest=str(digest), piece=index)
        if digest not in self._rechecks:
            task = asyncio.create_task(self._recheck(digest), name=f"recheck of {digest}")
            self._rechecks[digest] = task
            task.add_done_callback(lambda _: self._rechecks.pop(digest, None))

    async def _recheck(self, digest: Digest) -> None:
        if not await in_thread(self._local.recheck, digest):
            self._forget(digest)

    async def close(self) -> None:
        """End what is under way. Call it after the peer endpoint has stopped."""
        for task in self._rechecks.values():
            task.cancel()
        await asyncio.gather(*self._rechecks.values(), return_exceptions=True)
        await in_thread(self._checking.shutdown)


class OwnersShare:
    """How a blob's owners share the spreading of its pieces (`shoal.swarm.node.SeedingPlan`)."""

    def __init__(self, name: str, owners: Callable[[Digest], list[str]]) -> None:
        self._name = name
        self._owners = owners

    def rank(self, digest: Digest) -> tuple[int, int]:
        """This origin's place among the owners, and their number; others come after them."""
        owners = self._owners(digest)
        if self._name in owners:
            return owners.index(self._name), len(owners)
        return len(owners), len(owners) + 1
