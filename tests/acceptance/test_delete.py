# SPDX-License-Identifier: Apache-2.0
"""What a client deletes is gone everywhere at once, and what others share with it stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import raw
from tests.acceptance.clients import Client, Reference, Skopeo
from tests.acceptance.images import BOTH, Image, build
from tests.cluster import RunningCluster

pytestmark = pytest.mark.client("skopeo")

EACH_CLIENT = [
    pytest.param(name, marks=pytest.mark.client(name))
    for name in ("skopeo", "podman", "buildah", "ctr", "docker")
]


def registries(cluster: RunningCluster) -> list[str]:
    return [cluster.proxy, *(agent.registry for agent in cluster.agents)]


def test_a_deleted_manifest_is_gone_from_the_proxy_and_every_agent(
    skopeo: Skopeo, cluster: RunningCluster
) -> None:
    image = build("deleted", platforms=BOTH)
    reference = Reference(cluster.proxy, "delete/by-skopeo")
    skopeo.push(image, reference)
    skopeo.copy(reference, reference.tagged("same"))
    other = build("not deleted", layer_size=1000)
    skopeo.push(other, reference.tagged("other"))
    for registry in registries(cluster):
        assert skopeo.raw(reference.at(registry)) == image.top.data

    skopeo.delete(reference)

    for registry in registries(cluster):
        here = reference.at(registry)
        assert raw.manifest(here).status == 404
        assert raw.manifest(here.tagged("same")).status == 404, "it named the same manifest"
        assert raw.manifest(here, image.digest).status == 404
        assert raw.manifest(here, image.host.manifest.digest).status == 200, "a child stays"
        assert skopeo.tags(here) == ["other"]
        assert skopeo.raw(here.tagged("other")) == other.top.data


@pytest.mark.parametrize("name", EACH_CLIENT)
def test_a_copy_in_another_repository_survives_the_deletion(
    name: str, skopeo: Skopeo, cluster: RunningCluster, request: pytest.FixtureRequest
) -> None:
    client: Client = request.getfixturevalue(name)
    image = build(f"deleted at its source by {name}")
    source = Reference(cluster.proxy, f"delete/{name}/from")
    target = Reference(cluster.proxy, f"delete/{name}/to")
    client.push(image, source)
    client.copy(source, target)

    skopeo.delete(source)

    for registry in registries(cluster):
        assert raw.manifest(source.at(registry)).status == 404
        assert client.pull(target.at(registry)).diff_ids == image.host.diff_ids


def test_a_deleted_image_can_be_pushed_again(skopeo: Skopeo, cluster: RunningCluster) -> None:
    image = build("deleted and pushed again")
    reference = Reference(cluster.proxy, "delete/again")
    for _ in range(2):
        assert skopeo.push(image, reference) == image.digest
        for registry in registries(cluster):
            assert skopeo.raw(reference.at(registry)) == image.top.data
        skopeo.delete(reference)
        assert raw.manifest(reference).status == 404


def test_garbage_collection_removes_what_was_deleted_and_nothing_else(
    skopeo: Skopeo, cluster: RunningCluster
) -> None:
    gone, kept = build("collected", platforms=BOTH), build("kept", platforms=BOTH)
    reference = Reference(cluster.proxy, "collect/gone")
    for image, repository in ((gone, "collect/gone"), (kept, "collect/gone/kept")):
        skopeo.push(image, Reference(cluster.proxy, repository))
    shared = build("collected in one repository of two", layer_size=1000)
    skopeo.push(shared, reference.tagged("shared"))
    copy = Reference(cluster.proxy, "collect/copy")
    skopeo.copy(reference.tagged("shared"), copy)
    assert all(_files(cluster, image) for image in (gone, kept, shared))

    # Of an index, its children go with it only when they are deleted, too.
    skopeo.delete(reference.tagged("shared"))
    skopeo.delete(reference)
    for platform in gone.platforms:
        url = f"{cluster.proxy}/v2/collect/gone/manifests/{platform.manifest.digest}"
        assert raw.ask(url, "DELETE").status == 202
    assert not _removed(_collect(cluster, "--dry-run")).isdisjoint(_blobs(gone))
    assert _files(cluster, gone), "a dry run removes nothing"
    report = _collect(cluster)

    assert _removed(report) >= _blobs(gone)
    assert not _files(cluster, gone)
    for registry in registries(cluster):
        folder = skopeo.pull_all(Reference(registry, "collect/gone/kept"))
        assert (folder / "manifest.json").read_bytes() == kept.top.data
        assert skopeo.pull(copy.at(registry)).diff_ids == shared.host.diff_ids

    assert skopeo.push(gone, reference) == gone.digest, "it can come again"
    for registry in registries(cluster):
        folder = skopeo.pull_all(reference.at(registry))
        assert (folder / "manifest.json").read_bytes() == gone.top.data


def _collect(cluster: RunningCluster, *options: str) -> Any:
    config = str(cluster.config_path("proxy-0"))
    argv = [sys.executable, "-m", "shoal", "gc", "--config", config, "--grace", "0s", "--json"]
    done = subprocess.run(
        [*argv, *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _removed(report: Any) -> set[str]:
    return {item["digest"] for sweep in report["origins"].values() for item in sweep["items"]}


def _blobs(image: Image) -> set[str]:
    return {blob.digest for blob in image.blobs()}


def _files(cluster: RunningCluster, image: Image) -> list[Path]:
    """The origins' files of an image's blobs."""
    return [
        file
        for content in image.blobs()
        for file in cluster.folder.glob(f"data/origin-*/blobs/sha256/*/{content.hex}")
    ]
