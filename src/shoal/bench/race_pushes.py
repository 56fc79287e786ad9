# SPDX-License-Identifier: Apache-2.0
"""Push many images at once, the way clients do, and look for what was acknowledged afterwards.

The client never sends anything twice: every failure is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shoal.bench.race_images import Content, Image
from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.registry.client import RegistryClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

AT_ONCE = 16
"""Pushes under way at the same time."""

BLOBS_AT_ONCE = 3
"""Blobs that one push sends at the same time, as docker and containerd do by default."""

ARRIVED_WITHIN = 60.0
"""Seconds after the last push within which everything acknowledged must be on the origins."""

REPOSITORY = "bench/race"


@dataclass
class Pushed:
    """What became of the pushes."""

    acknowledged: list[Image] = field(default_factory=list)
    failed_with: Counter[str] = field(default_factory=Counter)
    """Failed pushes by what failed: the step, the status and the error code."""
    tag_seconds: list[float] = field(default_factory=list)
    """What each acknowledged tag write took."""

    @property
    def ended(self) -> int:
        """Pushes that ended in either way."""
        return len(self.acknowledged) + self.failed_with.total()


class Pushers:
    """Pushes images through one proxy, `AT_ONCE` at the same time."""

    def __init__(self, registry: RegistryClient, head_start: float) -> None:
        """`head_start`: seconds from the last blob of an image to its first manifest."""
        self._registry = registry
        self._head_start = head_start
        self._progress = asyncio.Condition()
        self.pushed = Pushed()

    async def push(self, images: Sequence[Image]) -> None:
        """Push all; each to a tag of its own."""
        waiting = iter(images)

        async def work() -> None:
            for image in waiting:
                await self._push(image)
                async with self._progress:
                    self._progress.notify_all()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())

    async def ended(self, count: int) -> None:
        """Wait until so many pushes have ended."""
        async with self._progress:
            await self._progress.wait_for(lambda: self.pushed.ended >= count)

    async def _push(self, image: Image) -> None:
        step = "blob"
        try:
            await self._push_blobs(image.blobs)
            await asyncio.sleep(self._head_start)
            step = "child manifest"
            for child in image.children:
                await self._registry.put_manifest(
                    REPOSITORY, child.digest, child.body, child.media_type
                )
            step = "tag"
            began = time.perf_counter()
            root = image.root
            await self._registry.put_manifest(REPOSITORY, tag_of(image), root.body, root.media_type)
        except CallFailed as error:
            self.pushed.failed_with[f"{step}: {_reason(error)}"] += 1
            return
        self.pushed.tag_seconds.append(time.perf_counter() - began)
        self.pushed.acknowledged.append(image)

    async def _push_blobs(self, blobs: Iterable[Content]) -> None:
        slots = asyncio.Semaphore(BLOBS_AT_ONCE)

        async def send(blob: Content) -> None:
            async with slots:
                if await self._registry.stat_blob(REPOSITORY, blob.digest) is None:
                    await self._registry.push_blob(REPOSITORY, blob.digest, blob.body, way="put")

        outcomes = await asyncio.gather(*map(send, blobs), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome


def tag_of(image: Image) -> str:
    """The tag that an image is pushed to."""
    return f"v{image.root.digest.hex[:16]}"


async def lost(acknowledged: Sequence[Image], registry: RegistryClient, ring: OriginCluster) -> int:
    """Count the acknowledged pushes of which something is not there, with no fault injected.

    A tag must be there at once; the origins have `ARRIVED_WITHIN` seconds to get every blob.
    """
    missing = {image.root.digest for image in acknowledged if not await _tagged(image, registry)}
    deadline = Deadline.after(ARRIVED_WITHIN)
    absent = await _absent(acknowledged, ring, deadline)
    while absent and deadline.remaining() > 1.0:
        await asyncio.sleep(0.5)
        absent = await _absent(acknowledged, ring, deadline)
    missing |= {
        image.root.digest
        for image in acknowledged
        if any(content.digest in absent for content in image.contents())
    }
    return len(missing)


async def _tagged(image: Image, registry: RegistryClient) -> bool:
    try:
        found = await registry.get_manifest(REPOSITORY, tag_of(image))
    except CallFailed:
        return False
    return found.digest == image.root.digest


async def _absent(
    acknowledged: Sequence[Image], ring: OriginCluster, deadline: Deadline
) -> set[Digest]:
    wanted = {content.digest for image in acknowledged for content in image.contents()}
    presence = await ring.stat_many(wanted, deadline=deadline)
    return wanted - presence.sizes.keys()


def _reason(error: CallFailed) -> str:
    if error.status is None:
        return type(error).__name__
    return f"{error.status} {error.code or ''}".strip()
