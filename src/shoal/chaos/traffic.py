# SPDX-License-Identifier: Apache-2.0
"""The clients of a cluster in trouble: some push all the time, some pull what was acknowledged.

A push is tried once, as its failure says nothing about it; only what the registry acknowledged
counts. A pull that fails is tried again at the next agent, until it succeeds: how long that takes,
from the first try to the last byte, is how long the image was unavailable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from random import Random

import structlog

from shoal.chaos.images import Blob, Image, image
from shoal.chaos.ledger import Ledger, Pushed
from shoal.model.digest import Digest, new_hasher
from shoal.model.media_types import OCI_MANIFEST
from shoal.registry.client import RegistryClient
from shoal.store.threads import in_thread
from shoal.web.failures import CallFailed

BETWEEN_TRIES = 0.25
"""Seconds between two tries of one pull."""

KEPT_TAGS = 4
"""Of a writer's pushes one in so many moves a tag that it had pushed before."""

log = structlog.get_logger()


class WrongBytes(Exception):
    """What was pulled is not what was pushed."""


class Writer:
    """Pushes one image after the other to a repository of its own."""

    def __init__(
        self, number: int, seed: int, registries: Sequence[RegistryClient], ledger: Ledger
    ) -> None:
        self._repository = f"chaos/writer-{number}"
        self._number = number
        self._seed = seed
        self._registries = registries
        self._ledger = ledger

    async def run(self) -> None:
        """Push until cancelled."""
        turn = 0
        while True:
            turn += 1
            made = await in_thread(image, self._seed, self._number * 1_000_000 + turn)
            tag = "latest" if turn % KEPT_TAGS == 0 else f"v{turn}"
            pushed = Pushed(
                self._repository,
                tag,
                made.manifest.digest,
                tuple((blob.digest, len(blob.body)) for blob in made.blobs),
            )
            self._ledger.begin(pushed)
            registry = self._registries[turn % len(self._registries)]
            try:
                await self._push(registry, made, tag)
            except CallFailed as error:
                self._ledger.refused(_reason(error))
                await asyncio.sleep(BETWEEN_TRIES)
            else:
                self._ledger.acknowledge(pushed)

    async def _push(self, registry: RegistryClient, made: Image, tag: str) -> None:
        async def send(blob: Blob) -> None:
            if await registry.stat_blob(self._repository, blob.digest) is None:
                await registry.push_blob(self._repository, blob.digest, blob.body, way="stream")

        outcomes = await asyncio.gather(*map(send, made.blobs), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        await registry.put_manifest(self._repository, tag, made.manifest.body, OCI_MANIFEST)


class Reader:
    """Pulls images that were acknowledged, from any agent that answers."""

    def __init__(
        self,
        number: int,
        seed: int,
        registries: Sequence[RegistryClient],
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._random = Random(f"reader/{seed}/{number}")
        self._registries = registries
        self._ledger = ledger
        self._clock = clock

    async def run(self) -> None:
        """Pull until cancelled."""
        while True:
            if not self._ledger.acknowledged:
                await asyncio.sleep(BETWEEN_TRIES)
                continue
            # The latest ones are where copies are still being made.
            recent = self._ledger.acknowledged[-50:]
            among = recent if self._random.random() < 0.7 else self._ledger.acknowledged
            await self._until_pulled(self._random.choice(among))

    async def _until_pulled(self, wanted: Pushed) -> None:
        began = self._clock()
        try:
            await self._try_each(wanted)
        finally:
            # Whatever ends it: one that hung without failing, and one under way at the end, too.
            self._ledger.waited(self._clock() - began)

    async def _try_each(self, wanted: Pushed) -> None:
        first = self._random.randrange(len(self._registries))
        turn = 0
        while True:
            registry = self._registries[(first + turn) % len(self._registries)]
            try:
                await pull(registry, wanted, by_tag=False)
            except CallFailed as error:
                self._ledger.failed(_reason(error))
                turn += 1
                await asyncio.sleep(BETWEEN_TRIES)
            except WrongBytes as error:
                log.error("wrong bytes", error=str(error))  # noqa: TRY400 -- it says all there is
                self._ledger.wrong()
                return
            else:
                self._ledger.pulled()
                return


async def pull(registry: RegistryClient, wanted: Pushed, *, by_tag: bool) -> Digest:
    """Pull an image whole; the digest of its manifest, which a moved tag may change.

    Raises `CallFailed`, or `WrongBytes`.
    """
    found = await registry.get_manifest(wanted.repository, wanted.tag if by_tag else wanted.root)
    if found.digest != wanted.root:
        return found.digest
    for digest, size in wanted.contents:
        await _pull_blob(registry, wanted, digest, size)
    return found.digest


async def _pull_blob(registry: RegistryClient, wanted: Pushed, digest: Digest, size: int) -> None:
    hasher, came = new_hasher(digest.algorithm), 0
    async with registry.stream_blob(wanted.repository, digest) as answer:
        async for chunk in answer.chunks():
            await in_thread(hasher.update, chunk)
            came += len(chunk)
    if came != size or hasher.hexdigest() != digest.hex:
        raise WrongBytes(
            f"{wanted.repository}: {came} bytes of sha256:{hasher.hexdigest()} came for {digest}, "
            f"which has {size}"
        )


def _reason(error: CallFailed) -> str:
    if error.status is None:
        return type(error).__name__
    return f"{error.status} {error.code or ''}".strip()
