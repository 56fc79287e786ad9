# SPDX-License-Identifier: Apache-2.0
"""How soon the first byte of a cold blob comes, small or large, and an image of many tiny layers.

Each blob is new, through an agent that has never heard of it, by a client with a connection of its
own. Small ones are pulled one after the other; the first finds an agent that has not yet spoken to
anybody. The tiny layers are pulled three at a time, as container runtimes do by default.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from shoal.bench import content
from shoal.bench.client import RegistryConnection, push_blob
from shoal.bench.fetch import Fetched, Task, fetcher
from shoal.cluster import interrupt
from shoal.cluster.layout import Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.room import check_room
from shoal.cluster.sample import Layer, make_image
from shoal.cluster.supervisor import Cluster
from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST

SHAPE = Shape(agents=1)
SMALL = 1024
SMALL_BLOBS = 9
LAYERS = 60
_LAYER = 4096
_AT_ONCE = 3
_PATIENCE = 120.0
_REPOSITORY = "bench/latency"


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from the request."""

    small_s: list[float]
    """To the first byte of each blob of 1 KiB, in the order in which they were pulled: this agent
    never heard of them, so it asks whether they belong to the repository before all else."""

    layer_s: list[float]
    """The same of blobs that are layers of an image, after its manifest, as clients pull."""

    large_s: float
    """To the first byte of a large one."""

    image_s: float
    """To the last byte of an image of so many tiny layers, tag and manifest included."""

    layers: int = LAYERS


def run(
    size: int, runs: int, folder: Path | None, complain: Callable[[str], None]
) -> list[Latency]:
    """Measure on a cluster of its own; `size`: bytes of the large blob.

    Raises `NoRoom`, `TransferFailed`, `interrupt.Interrupted` or what `local_cluster` raises.
    """

    async def measure(place: Path) -> list[Latency]:
        async with local_cluster(SHAPE, place / "cluster", report=complain) as cluster:
            source = place / "source"
            await asyncio.to_thread(content.write_random, source, size)
            return [await _run(cluster, source) for _ in range(runs)]

    with TemporaryDirectory(prefix="shoal-bench-", dir=folder, ignore_cleanup_errors=True) as place:
        check_room(Path(place), size * (2 + 4 * runs))
        return interrupt.run(measure(Path(place)))


async def _run(cluster: Cluster, source: Path) -> Latency:
    proxy, agent = cluster.layout.of("proxy")[0].url(), cluster.layout.of("agent")[0].url()
    base = f"{agent}/v2/{_REPOSITORY}"
    small = await asyncio.to_thread(_push_small, proxy)
    small_tag, small_layers = await asyncio.to_thread(_push_image, proxy, SMALL_BLOBS, SMALL)
    tag, digests = await asyncio.to_thread(_push_image, proxy, LAYERS, _LAYER)
    large_digest = await asyncio.to_thread(content.renew, source)
    await asyncio.to_thread(push_blob, proxy, _REPOSITORY, source, large_digest)
    await asyncio.to_thread(os.sync)
    of_small = [await _fetch([f"{base}/blobs/{digest}"]) for digest in small]
    await _fetch([f"{base}/manifests/{small_tag}"])
    of_layers = [await _fetch([f"{base}/blobs/{digest}"]) for digest in small_layers[:SMALL_BLOBS]]
    manifest = await _fetch([f"{base}/manifests/{tag}"])
    blobs = await _fetch([f"{base}/blobs/{digest}" for digest in digests], _AT_ONCE)
    of_large = await _fetch([f"{base}/blobs/{large_digest}"])
    image_s = manifest.wall_s + blobs.wall_s
    small_s = [fetched.first_byte_s for fetched in of_small]
    layer_s = [fetched.first_byte_s for fetched in of_layers]
    return Latency(small_s, layer_s, of_large.first_byte_s, image_s)


async def _fetch(urls: list[str], at_once: int = 1) -> Fetched:
    async with fetcher(Task(urls, at_once)) as client:
        return await client.go(_PATIENCE)


def _push_small(proxy: str) -> list[str]:
    """Push blobs of 1 KiB; their digests. Blocks."""
    contents = [os.urandom(SMALL) for _ in range(SMALL_BLOBS)]
    digests = [str(Digest.of(data)) for data in contents]
    for data, digest in zip(contents, digests, strict=True):
        push_blob(proxy, _REPOSITORY, data, digest)
    return digests


def _push_image(proxy: str, count: int, size: int) -> tuple[str, list[str]]:
    """Push an image of tiny layers; its tag and its blobs, the config last. Blocks."""
    contents = [os.urandom(size) for _ in range(count)]
    layers = [Layer(Path(), Digest.of(data), len(data)) for data in contents]
    image = make_image(tuple(layers))
    contents.append(image.config)
    tag = Digest.of(image.manifest).hex[:12]
    with RegistryConnection(proxy) as registry:
        for data in contents:
            registry.push_blob(_REPOSITORY, data, str(Digest.of(data)))
        registry.put_manifest(_REPOSITORY, tag, image.manifest, OCI_MANIFEST)
    return tag, [str(Digest.of(data)) for data in contents]
