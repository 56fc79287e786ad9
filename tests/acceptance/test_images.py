# SPDX-License-Identifier: Apache-2.0
"""Indexes of several platforms, and both families of media types, arrive byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.clients import (
    Buildah,
    Client,
    Ctr,
    Docker,
    Podman,
    Reference,
    Skopeo,
    content_of,
)
from tests.acceptance.images import BOTH, DOCKER, OCI, MediaTypes, build
from tests.cluster import RunningCluster

INDEX_CLIENTS = [
    pytest.param(name, marks=pytest.mark.client(name)) for name in ("podman", "buildah", "docker")
]
"""Clients that choose a platform by themselves, and make indexes."""
EACH_FAMILY = [pytest.param(OCI, id="oci"), pytest.param(DOCKER, id="docker")]


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("types", EACH_FAMILY)
def test_skopeo_copies_every_platform(
    types: MediaTypes, skopeo: Skopeo, cluster: RunningCluster
) -> None:
    image = build("all by skopeo", platforms=BOTH, types=types)
    reference = Reference(cluster.proxy, "multi/by-skopeo", types.index[12:15])

    assert skopeo.push(image, reference) == image.digest
    folder = skopeo.pull_all(reference.at(cluster.agents[0].registry))

    assert (folder / "manifest.json").read_bytes() == image.top.data
    names = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert names >= {digest.partition(":")[2] for digest in content_of(image) - {image.digest}}


@pytest.mark.client("ctr")
@pytest.mark.parametrize("types", EACH_FAMILY)
def test_containerd_copies_every_platform(
    types: MediaTypes, ctr: Ctr, cluster: RunningCluster
) -> None:
    image = build("all by ctr", platforms=BOTH, types=types)
    reference = Reference(cluster.proxy, "multi/by-ctr", types.index[12:15])

    assert ctr.push(image, reference) == image.digest
    at_agent = reference.at(cluster.agents[1].registry)
    namespace = ctr.pull_into_new(at_agent, "--plain-http", "--all-platforms")

    assert ctr.digest(namespace, at_agent) == image.digest
    assert ctr.digests(namespace) == content_of(image)


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("types", EACH_FAMILY)
@pytest.mark.parametrize(
    "puller_name",
    [
        pytest.param(name, marks=pytest.mark.client(name))
        for name in ("podman", "buildah", "docker")
    ],
)
def test_a_client_finds_its_platform_in_an_index(
    types: MediaTypes,
    puller_name: str,
    skopeo: Skopeo,
    cluster: RunningCluster,
    request: pytest.FixtureRequest,
) -> None:
    puller: Client = request.getfixturevalue(puller_name)
    image = build("one of two", platforms=BOTH, types=types)
    reference = Reference(cluster.proxy, f"multi/for-{puller_name}", types.index[12:15])
    skopeo.push(image, reference)

    pulled = puller.pull(reference.at(cluster.agents[0].registry))

    assert pulled.digest in {image.digest, image.host.manifest.digest}
    assert pulled.diff_ids == image.host.diff_ids


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("types", EACH_FAMILY)
@pytest.mark.parametrize(
    "puller_name",
    [pytest.param(name, marks=pytest.mark.client(name)) for name in ("podman", "ctr", "docker")],
)
def test_every_client_takes_both_families(
    types: MediaTypes,
    puller_name: str,
    skopeo: Skopeo,
    cluster: RunningCluster,
    request: pytest.FixtureRequest,
) -> None:
    puller: Client = request.getfixturevalue(puller_name)
    image = build("either family", types=types)
    reference = Reference(cluster.proxy, f"family/for-{puller_name}", types.index[12:15])
    skopeo.push(image, reference)
    at_agent = reference.at(cluster.agents[1].registry)

    pulled = puller.pull(at_agent)

    assert skopeo.raw(at_agent) == image.top.data
    assert pulled.digest == image.digest
    assert pulled.diff_ids == image.host.diff_ids


@pytest.mark.client("docker", "skopeo")
def test_docker_pushes_schema_2(docker: Docker, skopeo: Skopeo, cluster: RunningCluster) -> None:
    image = build("schema 2")
    reference = Reference(cluster.proxy, "made/by-docker-push")
    docker.push(image, reference)

    at_agent = reference.at(cluster.agents[0].registry)
    manifest = json.loads(skopeo.raw(at_agent))
    assert manifest["mediaType"] == DOCKER.manifest
    assert {layer["mediaType"] for layer in manifest["layers"]} == {DOCKER.layer}
    assert docker.manifest(at_agent)["config"]["digest"] == manifest["config"]["digest"]


@pytest.mark.client("skopeo")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.client(name))
        for name in ("podman", "buildah", "docker")
    ],
)
def test_a_client_makes_an_index_of_what_is_in_the_registry(
    name: str, skopeo: Skopeo, cluster: RunningCluster, request: pytest.FixtureRequest
) -> None:
    maker: Podman | Buildah | Docker = request.getfixturevalue(name)
    image = build(f"to be put into an index by {name}")
    source = Reference(cluster.proxy, f"made/source-for-{name}")
    # docker 20.10 writes the manifests of others anew, and then names their old digests.
    digest = maker.push(image, source)
    reference = Reference(cluster.proxy, f"made/by-{name}")

    maker.push_index([source], reference)

    for agent in cluster.agents:
        index = json.loads(skopeo.raw(reference.at(agent.registry)))
        assert [entry["digest"] for entry in index["manifests"]] == [digest]
        assert maker.pull(reference.at(agent.registry)).diff_ids == image.host.diff_ids


@pytest.mark.client("buildah", "podman")
def test_what_buildah_builds_is_pulled_by_others(
    buildah: Buildah, podman: Podman, cluster: RunningCluster, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("built by buildah")
    reference = Reference(cluster.proxy, "made/by-buildah-build")

    digest = buildah.push_local(buildah.build({file: "/file"}), reference)

    for agent in cluster.agents:
        assert podman.pull(reference.at(agent.registry)).digest == digest
