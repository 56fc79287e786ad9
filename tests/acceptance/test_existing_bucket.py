# SPDX-License-Identifier: Apache-2.0
"""A cluster serves what distribution's registry stored, from the first moment on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.clients import Pulled, Reference, Skopeo
from tests.acceptance.distribution import Distribution
from tests.acceptance.images import BOTH, Image, build
from tests.acceptance.raw import blob, manifest
from tests.cluster import RunningCluster

pytestmark = pytest.mark.client("docker-registry", "skopeo")

REPOSITORY = "team/taken-over"


@dataclass
class TakenOver:
    """A cluster whose backend is the folder of a registry that has ended, and what is in it."""

    cluster: RunningCluster
    image: Image
    index: Image

    def at(self, agent: int, tag: str) -> Reference:
        return Reference(self.cluster.agents[agent].registry, REPOSITORY, tag)


@pytest.fixture(scope="module")
def taken_over(folder: Path, skopeo: Skopeo) -> Iterator[TakenOver]:
    base = folder / "taken-over"
    image, index = build("stored by distribution"), build("stored, too", platforms=BOTH)
    with Distribution.run(base) as registry:
        for tag, pushed in (("single", image), ("multi", index)):
            assert skopeo.push(pushed, Reference(registry.url, REPOSITORY, tag)) == pushed.digest
    backends = {"backends": [{"match": ".*", "kind": "local", "path": str(base / "storage")}]}
    config = {"origin": backends, "build-index": backends}
    with RunningCluster.start(base / "cluster", agents=2, config=config) as cluster:
        yield TakenOver(cluster, image, index)


def test_an_image_is_pulled_by_tag(taken_over: TakenOver, skopeo: Skopeo) -> None:
    image = taken_over.image
    assert skopeo.pull(taken_over.at(0, "single")) == Pulled(image.digest, image.host.diff_ids)


def test_every_platform_of_an_index_is_pulled_by_tag(taken_over: TakenOver, skopeo: Skopeo) -> None:
    folder = skopeo.pull_all(taken_over.at(0, "multi"))
    assert (folder / "manifest.json").read_bytes() == taken_over.index.top.data
    files = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert files >= {content.hex for content in taken_over.index.blobs()}


def test_all_of_it_is_there_by_digest(taken_over: TakenOver) -> None:
    """At the agent that was asked for no tag: nothing tells it what there is."""
    reference = taken_over.at(1, "none")
    manifests = [taken_over.image.top, taken_over.index.top]
    manifests += [platform.manifest for platform in taken_over.index.platforms]
    for content in manifests:
        answer = manifest(reference, content.digest)
        assert (answer.status, answer.body) == (200, content.data)
        assert answer.headers["Content-Type"] == content.media_type
    digests = {content.digest for content in manifests}
    for content in (*taken_over.image.blobs(), *taken_over.index.blobs()):
        if content.digest not in digests:
            answer = blob(reference, content.digest)
            assert (answer.status, answer.body) == (200, content.data)


def test_its_tags_are_listed_with_those_that_are_pushed_now(
    taken_over: TakenOver, skopeo: Skopeo
) -> None:
    assert skopeo.tags(taken_over.at(0, "single")) == ["multi", "single"]
    image = build("pushed to the cluster")
    skopeo.push(image, Reference(taken_over.cluster.proxy, REPOSITORY, "new"))
    assert skopeo.tags(taken_over.at(0, "single")) == ["multi", "new", "single"]
    assert skopeo.pull(taken_over.at(0, "new")).digest == image.digest
