# SPDX-License-Identifier: Apache-2.0
"""Check a blob's digest while it streams: hashed in a thread, the next bytes arriving meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from shoal.model.digest import Hasher
from shoal.model.manifest import Descriptor

_BATCH = 1 << 20


class WrongContent(Exception):
    """What came is not what was asked for."""


async def receive_verified(
    chunks: AsyncIterator[bytes], expected: Descriptor, source: str
) -> AsyncIterator[int]:
    """Yield the number of bytes that came, chunk by chunk; nothing is kept.

    Raises `WrongContent`, naming `source`, when size or digest are not as described.
    """
    hasher = expected.digest.hasher()
    batch: list[bytes] = []
    waiting = received = 0
    hashing: asyncio.Task[None] | None = None
    try:
        async for chunk in chunks:
            batch.append(chunk)
            waiting += len(chunk)
            received += len(chunk)
            yield len(chunk)
            if waiting >= _BATCH:
                if hashing is not None:
                    await hashing
                hashing = asyncio.create_task(asyncio.to_thread(_update, hasher, batch))
                batch, waiting = [], 0
    finally:
        if hashing is not None:
            await hashing
    await asyncio.to_thread(_update, hasher, batch)
    if received != expected.size or hasher.hexdigest() != expected.digest.hex:
        raise WrongContent(
            f"{source} sent {received} bytes with digest {expected.digest.algorithm}:"
            f"{hasher.hexdigest()} for {expected.digest} of {expected.size} bytes"
        )


def _update(hasher: Hasher, batch: list[bytes]) -> None:
    for chunk in batch:
        hasher.update(chunk)
