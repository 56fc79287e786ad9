# SPDX-License-Identifier: Apache-2.0
"""``shoal demo``: push an image through the proxy, pull it through every agent at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from shoal.cluster import interrupt
from shoal.cluster.demo_view import Pulled, Pushed, View
from shoal.cluster.layout import Member, Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.received import received
from shoal.cluster.room import check_room
from shoal.cluster.sample import SampleImage, layer_sizes, make_image, make_layer
from shoal.cluster.supervisor import Cluster
from shoal.cluster.verify import WrongContent, receive_verified
from shoal.model.digest import Digest
from shoal.model.manifest import Descriptor, parse_manifest
from shoal.model.media_types import OCI_MANIFEST
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from shoal.web.failures import CallFailed

_T = TypeVar("_T")

REPOSITORY = "demo/image"
TAG = "latest"


class DemoFailed(Exception):
    """The demo did not show what it should; the message says what failed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is shown: `size` bytes in so many layers, through a cluster of this shape."""

    size: int
    layers: int
    shape: Shape

    def disk_needed(self) -> int:
        """Bytes on disk: the source, an upload, the origins' and the agents' copies."""
        return self.size * (2 + self.shape.origins + self.shape.agents)


def run(plan: Plan, view: View) -> None:
    """Show it, and leave nothing behind.

    Raises `DemoFailed`, `NoRoom`, `interrupt.Interrupted` or what `local_cluster` raises.
    """
    with TemporaryDirectory(prefix="shoal-demo-", ignore_cleanup_errors=True) as place:
        check_room(Path(place), plan.disk_needed())
        interrupt.run(_demo(plan, Path(place), view))


async def _demo(plan: Plan, place: Path, view: View) -> None:
    began = time.monotonic()
    view.say(f"starting {len(plan.shape.names())} services")
    async with local_cluster(plan.shape, place / "cluster", report=view.say) as cluster:
        view.say(f"ready after {time.monotonic() - began:.1f} s; making an image")
        image = await _image(plan, place)
        http = HttpClient(user_agent="shoal-demo")
        try:
            await _show(cluster, http, image, view)
        except (CallFailed, WrongContent) as error:
            raise DemoFailed(str(error)) from error
        finally:
            await http.close()


async def _show(cluster: Cluster, http: HttpClient, image: SampleImage, view: View) -> None:
    view.say(f"pushing {len(image.layers)} layers, {image.size / 1e6:.0f} MB, through the proxy")
    pushed = await _push(cluster.layout.of("proxy")[0], http, image)
    agents = cluster.layout.of("agent")
    view.say(f"pulling through {len(agents)} agents at the same time")
    began = time.monotonic()
    with view.bars([agent.name for agent in agents], image.size) as advance:
        seconds = await _together([_pull(agent, http, image, advance) for agent in agents])
    total_s = time.monotonic() - began
    pulled = []
    for agent, taken in zip(agents, seconds, strict=True):
        came = await received(agent, http)
        pulled.append(Pulled(agent.name, image.size, taken, came.from_peers, came.from_origins))
    view.table(pushed, pulled, total_s)


async def _image(plan: Plan, place: Path) -> SampleImage:
    sizes = layer_sizes(plan.size, plan.layers)
    layers = await asyncio.gather(
        *(
            asyncio.to_thread(make_layer, place / f"layer-{number}", size)
            for number, size in enumerate(sizes)
        )
    )
    return make_image(tuple(layers))


async def _push(proxy: Member, http: HttpClient, image: SampleImage) -> Pushed:
    client = RegistryClient(http, proxy.url())
    began = time.monotonic()
    await _together(
        [client.push_blob(REPOSITORY, layer.digest, layer.path) for layer in image.layers]
        + [client.push_blob(REPOSITORY, Digest.of(image.config), image.config)]
    )
    await client.put_manifest(REPOSITORY, TAG, image.manifest, OCI_MANIFEST)
    return Pushed(image.size, time.monotonic() - began)


async def _pull(
    agent: Member, http: HttpClient, image: SampleImage, advance: Callable[[str, int], None]
) -> float:
    """Pull the tag's image and check it; return the seconds that it took."""
    client = RegistryClient(http, agent.url())
    began = time.monotonic()
    manifest = await client.get_manifest(REPOSITORY, TAG)
    if manifest.body != image.manifest:
        raise DemoFailed(f"{agent.name}: {TAG} is {manifest.digest}, not what was pushed")
    layers = {layer.digest for layer in image.layers}

    async def blob(descriptor: Descriptor) -> None:
        async with client.stream_blob(REPOSITORY, descriptor.digest) as answer:
            async for size in receive_verified(answer.chunks(), descriptor, agent.name):
                if descriptor.digest in layers:
                    advance(agent.name, size)

    await _together([blob(descriptor) for descriptor in parse_manifest(manifest.body).blobs()])
    return time.monotonic() - began


async def _together(work: list[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Do all at the same time; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
